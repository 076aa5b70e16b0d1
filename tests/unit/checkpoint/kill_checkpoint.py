"""Kill checkpoint surgery at many moments: SOURCE DESTINATION NUMBERED RANDOM.

Each child operates and is killed: some at a numbered call to fsync, mapping or rename, the rest at
random moments. After each, the source must be as it was, and the destination absent or whole.
"""

import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from surgery_lib import files
from surgery_lib.checkpoint import edit as checkpoint
from surgery_lib.surgery import Surgery


def operate(source: Path, edit: Surgery, destination: Path) -> None:
    checkpoint.operate(source, edit, destination, progress=False)


def child(source: Path, edit: Surgery, destination: Path, at_call: int | None) -> None:
    """Operate in a child process that kills itself at a numbered step, where one is given."""
    left = at_call if at_call is not None else -1

    def counted(function):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    if at_call is not None:
        os.fsync, os.copy_file_range = counted(os.fsync), counted(os.copy_file_range)
        Path.rename = counted(Path.rename)
        checkpoint.mapped = counted(checkpoint.mapped)
    operate(source, edit, destination)
    os._exit(0)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: files.sha256(path) for path in sorted(folder.iterdir())}


def main() -> int:
    source, destination = Path(sys.argv[1]), Path(sys.argv[2])
    numbered, at_random = int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    # tqdm shares its lock with forked children: one killed while it holds it never gives it back.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    width = checkpoint.Checkpoint.open(source).width
    direction = torch.randn(width, generator=torch.Generator().manual_seed(0))
    edit = checkpoint.plan(source, direction, 0.05, 1.0, progress=False)
    before = hashes(source)
    lengths = []
    for _ in range(2):  # the second finds everything warm
        shutil.rmtree(destination, ignore_errors=True)
        start = time.perf_counter()
        operate(source, edit, destination)
        lengths.append(time.perf_counter() - start)
    length = min(lengths)
    whole = hashes(destination)
    shutil.rmtree(destination)
    moments = random.Random(0)
    killed = finished = 0
    while killed < numbered + at_random and finished < 3 * (numbered + at_random):
        at_call = 1 + 3 * killed if killed < numbered else None
        start = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            child(source, edit, destination, at_call)
        if at_call is None:
            time.sleep(moments.random() * length)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
        finished += not os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status):
            length = min(length, time.perf_counter() - start)
        if hashes(source) != before:
            sys.exit(f"kill {killed}: the source was changed")
        if destination.exists():
            if hashes(destination) != whole:
                sys.exit(f"kill {killed}: the destination is there but not whole")
            shutil.rmtree(destination)
    operate(source, edit, destination)
    if hashes(destination) != whole or list(destination.parent.glob(".*.partial")):
        sys.exit("after the kills, one more call did not give the whole, alone")
    shutil.rmtree(destination)
    print(f"{killed} killed, {finished} came too late; source untouched, no half-made destination")
    return 0


if __name__ == "__main__":
    sys.exit(main())
