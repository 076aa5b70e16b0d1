"""The one error that a user can cause, and what must not stand in it."""

from collections.abc import Sequence


class UserError(ValueError):
    """Something given from outside is wrong; the message, one line, says what to do about it."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it: the line, in notebooks too, and not the calls that led here."""
        return [f"UserError: {self}"]


def hidden(text: str, secrets: Sequence[str | None]) -> str:
    """The text without keys: a server may echo them, and an executed notebook keeps errors."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "•••")
    return text
