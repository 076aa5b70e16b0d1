"""The one error that a user can cause."""


class UserError(ValueError):
    """Something given from outside is wrong; the message, one line, says what to do about it."""
