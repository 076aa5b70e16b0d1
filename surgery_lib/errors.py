"""The one error that a user can cause."""


class UserError(ValueError):
    """Something given from outside is wrong; the message, one line, says what to do about it."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it: the line, in notebooks too, and not the calls that led here."""
        return [f"UserError: {self}"]
