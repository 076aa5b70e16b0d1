"""Where a site may be written: a folder that nobody else has anything in."""

from pathlib import Path

from surgery_lib.errors import UserError

MARK = ".model-surgery-site"  # in a folder that a build has written and the next may replace


def check_replaceable(folder: Path) -> None:
    """UserError unless the folder is empty, not there, or one that an earlier build has marked."""
    try:
        held = folder.is_dir() and any(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); choose another") from error
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is a link or a file; give a folder, or remove it")
    if held and not (folder / MARK).is_file():
        raise UserError(
            f"{folder} holds something that is no site marked by a build; move it away first"
        )
