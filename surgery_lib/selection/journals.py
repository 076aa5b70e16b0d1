"""The journal that a search keeps its trials in: one writer at a time, whole lines alone."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surgery_lib.errors import UserError
from surgery_lib.study.locks import alone

# Of the system: a full disk or quota, a folder that may not be written, a read-only system.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)

# Of a journal whose lines are no operations of Optuna's; an unknown one it asserts away.
FAULTS = (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError)


@contextmanager
def held(journal: Path | str | None) -> Iterator[None]:
    """Hold a journal for one search; what another has begun would be taken for left over.

    Raises:
        UserError: Another search is in it, or it cannot be written; what it holds goes on later.
    """
    if journal is None:
        yield
        return
    path = Path(journal)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file for the search's journal")
    try:
        with alone(path.with_name(f".{path.name}.lock"), f"the search in {path}"):
            yield
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise UserError(
            f"{path} could not be written ({error.strerror}); free some space or make it "
            "writable, then start again: the trials that it holds are kept"
        ) from error


def mend(path: Path) -> None:
    """Cut off a last line that a killed search left half-written.

    Optuna passes over a last whole line that is no JSON, and fails once it has written another
    behind it: so it is read here, and raises one of `FAULTS`.
    """
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as handle:
                handle.truncate(whole)
        if whole:
            json.loads(content[:whole].splitlines()[-1])
