"""The same edit on a checkpoint's files, without loading the model."""

from surgery_lib.checkpoint.edit import operate, plan

__all__ = ["operate", "plan"]
