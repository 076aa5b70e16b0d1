"""Sending a finished folder (a patch, or an edited checkpoint) to the hub, after asking."""

import glob
import re
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from surgery_lib.errors import UserError, hidden
from surgery_lib.models.hub import answering

NEEDED = "README.md"
# What a finished folder holds; nothing else leaves the machine, pickles and logs least of all.
SENT = (".safetensors", ".json", ".jinja", ".md", ".txt", ".model", ".png", ".svg", ".gguf")
NOT_SENT = ("logs", "executed", "compare")  # folders
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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

    Raises:
        UserError: The folder has no model card, the name is none, or the hub refuses.
    """
    folder = Path(folder)
    if not (folder / NEEDED).is_file():
        raise UserError(f"{folder} has no {NEEDED}; write the model card first (notebook 04 does)")
    if not isinstance(name, str) or name.count("/") != 1:
        raise UserError(f"{name!r} is no repository; write it as org/name")
    sent = [path for path in sorted(folder.rglob("*")) if path.is_file() and _goes(path, folder)]
    megabytes = sum(path.stat().st_size for path in sent) / 1e6
    for path in sent:
        print(f"  {path.relative_to(folder)}")
    kind = "private" if private else "PUBLIC"
    question = f"Send {len(sent)} files, {megabytes:.2f} MB, to the {kind} {name}? [y/N] "
    try:
        answer = "y" if ask is None else ask(question)
    except EOFError:  # nobody is there to ask
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        print("nothing was sent")
        return None
    try:
        with answering():
            api = HfApi(endpoint=endpoint, token=token)
            api.create_repo(name, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=name,
                folder_path=folder,
                # Escaped: the client takes these for patterns.
                allow_patterns=[glob.escape(path.relative_to(folder).as_posix()) for path in sent],
                commit_message="Model surgery: patch, card and figures",
            )
    except UserError:
        raise
    # What the client raises may hold the token: no error of its own is kept, in a traceback either.
    except (HfHubHTTPError, LocalTokenNotFoundError, HFValidationError) as error:
        reason = hidden(" ".join(str(error).split()), [token, _stored()])
        status = getattr(getattr(error, "response", None), "status_code", 0)
        advice = (
            "the hub itself fails: try later"
            if status >= 500
            else "log in with `hf auth login` and check the name"
        )
        raise UserError(f"the hub refused {name}: {reason[:200]}; {advice}") from None
    except Exception as error:  # whatever the client raises over an answer that is none
        kind = type(error).__name__
        raise UserError(
            f"the hub did not answer as it should ({kind}); check the network, HF_ENDPOINT and "
            "HF_HUB_OFFLINE, then send again"
        ) from None
    return str(done.commit_url)


def _stored() -> str | None:
    """The token that the client sends where none is given."""
    try:
        return get_token()
    except Exception:  # a login that has run out, or a server of tokens that is not there
        return None


def _goes(path: Path, folder: Path) -> bool:
    relative = path.relative_to(folder)
    return (
        path.resolve().is_relative_to(folder.resolve())
        and path.suffix in SENT
        and all(PLAIN.fullmatch(part) for part in relative.parts)
        and not any(part in NOT_SENT for part in relative.parts[:-1])
    )
