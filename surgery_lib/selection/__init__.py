"""Choosing probe, rows and strength on validation data, under a budget of damage."""

from surgery_lib.selection.choice import Choice, choose, estimate
from surgery_lib.selection.table import prepare

__all__ = ["Choice", "choose", "estimate", "prepare"]
