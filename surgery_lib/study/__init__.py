"""A study: its folder, its provenance, and the grid of several."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery_lib.study.study import Study

__all__ = ["Study"]


def __getattr__(name: str) -> Any:
    """Import the study on first use: what runs notebooks needs no model, and starts sooner."""
    if name != "Study":
        raise AttributeError(f"module 'surgery_lib.study' has no attribute {name!r}")
    from surgery_lib.study.study import Study

    return Study
