"""A study: its folder, its provenance, and the grid of several."""

from surgery_lib.study.study import Study

__all__ = ["Study"]
