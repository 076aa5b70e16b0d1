"""One writer at a time: locks that the system lets go of when their process ends, however it ends.

No clock and no process number is asked, so that neither a clock set back nor a reboot leaves one.
"""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from surgery_lib.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows: there nothing is held
    fcntl = None  # type: ignore[assignment]

# Of a file system without locks, as some that lie on a network: nothing is held there.
NONE_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def alone(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock `path`, a file that stays, for the length of the block.

    Where another process holds it: with `wait` this one says so and waits, else it is refused.

    Raises:
        UserError: Another process is at `what`, or the lock cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a")
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror or error}); free some space or choose "
            "another folder that may be written, then start again"
        ) from error
    with handle:
        if not _taken(handle):
            if not wait:
                raise UserError(
                    f"another process is at {what}; let it end, or choose another folder"
                )
            print(f"waiting for another run of {what} to end", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _taken(handle: IO[str]) -> bool:
    """Whether the lock is now ours."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NONE_HERE:
            raise
    return True
