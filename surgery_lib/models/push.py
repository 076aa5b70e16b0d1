"""Sending a finished folder (a patch, or an edited checkpoint) to the hub, after asking."""

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from surgery_lib.errors import UserError

NEEDED = "README.md"
# Logs, hidden files and pickles never leave the machine.
IGNORED = ("logs/*", "executed/*", ".*", "*/.*", "*.tmp", "*.bin", "*.pt", "*.pkl")


def push_to_hub(
    folder: Path | str,
    name: str,
    *,
    private: bool = True,
    ask: Callable[[str], str] | None = input,
    token: str | None = None,
    endpoint: str | None = None,
) -> str | None:
    """Send a folder to the model repository `name` (`org/name`), private unless said otherwise.

    What would be sent is shown first, and nothing is sent without a `y`; `ask=None` sends without
    asking. Returns the commit's address, or None where the answer was no. Without `token`, the one
    of `hf auth login` is used; none is ever stored.

    Raises UserError where the folder has no model card, the name is none, or the hub refuses.
    """
    folder = Path(folder)
    if not (folder / NEEDED).is_file():
        raise UserError(f"{folder} has no {NEEDED}; write the model card first (notebook 04 does)")
    if name.count("/") != 1:
        raise UserError(f"{name!r} is no repository; write it as org/name")
    sent = [path for path in sorted(folder.rglob("*")) if path.is_file() and _goes(path, folder)]
    megabytes = sum(path.stat().st_size for path in sent) / 1e6
    for path in sent:
        print(f"  {path.relative_to(folder)}")
    kind = "private" if private else "PUBLIC"
    question = f"Send {len(sent)} files, {megabytes:.2f} MB, to the {kind} {name}? [y/N] "
    if ask is not None and ask(question).strip().lower() not in ("y", "yes"):
        print("nothing was sent")
        return None
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=[path.relative_to(folder).as_posix() for path in sent],
            commit_message="Model surgery: patch, card and figures",
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, HFValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the hub refused {name}: {reason}; log in with `hf auth login` and check the name"
        ) from error
    except httpx.HTTPError as error:
        raise UserError(
            f"the hub cannot be reached ({type(error).__name__}); check the network"
        ) from error
    return str(done.commit_url)


def _goes(path: Path, folder: Path) -> bool:
    relative = path.relative_to(folder).as_posix()
    return not any(fnmatch(relative, pattern) for pattern in IGNORED)
