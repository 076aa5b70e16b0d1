"""Models: loading, the table of architectures, hidden states, generation, serving."""

from surgery_lib.models.load import (
    dtype_of,
    load_classifier,
    load_model,
    load_tokenizer,
    mirror,
    resolve,
    resolved_revision,
    snapshot,
    untrained,
)

__all__ = [
    "dtype_of",
    "load_classifier",
    "load_model",
    "load_tokenizer",
    "mirror",
    "resolve",
    "resolved_revision",
    "snapshot",
    "untrained",
]
