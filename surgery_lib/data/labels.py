"""What a label says: whether a text shows the behaviour. What is neither is an error, not a 0."""

from collections.abc import Sequence
from typing import Any

from surgery_lib.errors import UserError

YES, NO = ("1", "true"), ("0", "false")


def shows(value: Any, positive: Sequence[Any], where: str) -> bool:
    """Whether a label is one of those that `positive` names; `where` is its place, for the error.

    Where `positive` says 1 or true (or 0, false), a label is one of these; 1, "1", 1.0 and true are
    alike. Where it names classes, every other class is without the behaviour.

    Raises:
        UserError: No label, one that is neither yes nor no, or one that is a named class but for
            spaces or the case of letters.
    """
    word, wanted = _word(value), [_word(one) for one in positive]
    if not word:
        raise UserError(f"{where} has no label; fill it or drop the row")
    if all(one in (*YES, *NO) for one in wanted):
        if word not in (*YES, *NO):
            raise UserError(
                f"{where} has the label {_shown(value)}, which is neither 0 nor 1; correct it, or "
                "name the values that show the behaviour in positive="
            )
        return (word in YES) in [one in YES for one in wanted]
    if word in wanted:
        return True
    for one in wanted:
        if _folded(word) == _folded(one):
            raise UserError(f"{where} has the label {_shown(value)}, and not {one!r}; spell it so")
    return False


def _word(value: Any) -> str:
    """A label as text: numbers that are whole without a point, nothing for NaN and None."""
    if value is None or value != value:  # NaN is not itself
        return ""
    text = str(value).strip()
    if text.casefold() in ("true", "false"):
        return text.casefold()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


def _folded(word: str) -> str:
    return "".join(word.casefold().split())


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
