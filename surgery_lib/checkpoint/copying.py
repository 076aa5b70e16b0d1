"""Copying a folder of large files so that it is either whole or not there.

The copy is made in a locked, hidden folder beside its destination and renamed when everything is on
the disk. File systems that can share blocks (Btrfs, XFS, NFS 4.2) are asked to.
"""

import errno
import fcntl
import glob
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from surgery_lib.checkpoint.shards import INDEX, OTHER_WEIGHTS
from surgery_lib.errors import UserError

COPY_BYTES = 1 << 26
FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file until one is written
NOT_POSSIBLE = (
    errno.EOPNOTSUPP,
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOTTY,
    errno.ENOSYS,
    errno.EPERM,
)
CARD = re.compile(r"^README((?:\.parent)*)\.md$")
LAST = (INDEX, "config.json")


def check_free(destination: Path) -> None:
    """UserError where something is there already."""
    if os.path.lexists(destination):
        raise UserError(f"{destination} exists already; remove it or choose another name")


@contextmanager
def workplace(destination: Path) -> Iterator[Path]:
    """Yield a temporary folder; renamed to `destination` when all went well, removed otherwise.

    Folders that killed processes left for the same destination are removed. UserError where
    something cannot be written.
    """
    suffix = ".partial"
    folder = destination.with_name(f".{destination.name}.{os.getpid()}{suffix}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        for stale in destination.parent.glob(f".{glob.escape(destination.name)}.*{suffix}"):
            with _lock(stale) as free:
                if free:
                    shutil.rmtree(stale)
        folder.mkdir()
        with _lock(folder):
            yield folder
            for path in [*folder.rglob("*"), folder]:
                _sync(path)
            check_free(destination)
            folder.rename(destination)
            _sync(destination.parent)
    except OSError as error:
        raise UserError(
            f"{destination} could not be written ({error.strerror or error}); free some space or "
            "choose another folder, then start again"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold a folder; yields False where another process does, which it can only while it lives."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = True
    except BlockingIOError:
        held = False
    try:
        yield held
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_shards(shards: Sequence[Path], folder: Path, progress: bool) -> None:
    """Copy large files into a folder, several at a time. UserError where there is no room."""
    total = sum(shard.stat().st_size for shard in shards)
    # Where blocks are shared, only those that an edit writes need room.
    shared = _share(shards[0], folder / shards[0].name)
    free = shutil.disk_usage(folder).free
    if not shared and free < total + COPY_BYTES:
        raise UserError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, the copy needs {total / 1e9:.1f} GB; "
            "free some space or choose another folder"
        )
    with (
        tqdm(total=total, desc="copying", unit="B", unit_scale=True, disable=not progress) as bar,
        ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool,
    ):
        jobs = [pool.submit(_copy, shard, folder / shard.name, bar) for shard in shards]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _share(source: Path, target: Path) -> bool:
    with source.open("rb") as reader, target.open("wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), FICLONE, reader.fileno())
        except OSError as error:
            if error.errno in NOT_POSSIBLE:
                return False
            raise
    return True


def _copy(source: Path, target: Path, bar: Any) -> None:
    size = source.stat().st_size
    if _share(source, target):
        bar.update(size)
        return
    step: Callable[[int, int, int], int] = os.copy_file_range
    with source.open("rb") as reader, target.open("r+b") as writer:
        left = size
        while left:
            try:
                done = step(reader.fileno(), writer.fileno(), min(left, COPY_BYTES))
            except OSError as error:
                if error.errno not in NOT_POSSIBLE or step is _sendfile:
                    raise
                step = _sendfile
                continue
            if not done:
                raise OSError(errno.EIO, f"{source} ended early")
            left -= done
            bar.update(done)


def _sendfile(source: int, target: int, count: int) -> int:
    # For kernels and file systems without copy_file_range between these two.
    return os.sendfile(target, source, None, count)


def copy_others(source: Path, folder: Path) -> None:
    """Copy what is no weights: tokenizer, chat templates, code, and the config last.

    A model card is kept as README.parent.md, and that of a parent that was operated on itself as
    README.parent.parent.md, and so on. Weights in other forms are left behind: they would be
    the ones before the edit.
    """
    found = [path for path in source.iterdir() if not path.name.startswith(".")]
    for path in sorted(found, key=lambda path: (path.name in LAST, path.name)):
        name = CARD.sub(r"README\1.parent.md", path.name)
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=lambda _, names: [*filter(_weights, names)])
        elif not _weights(path.name):
            shutil.copyfile(path, folder / name)


def _weights(name: str) -> bool:
    # Not .bin alone: its index too.
    return name.removesuffix(".index.json").endswith((*OTHER_WEIGHTS, ".safetensors")) and (
        name != INDEX
    )
