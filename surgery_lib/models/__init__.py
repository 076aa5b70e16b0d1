"""Models: loading, the table of architectures, hidden states, generation, serving."""

from surgery_lib.models.load import (
    load_classifier,
    load_encoder,
    load_model,
    load_tokenizer,
    mirror,
    resolve,
    resolved_revision,
    snapshot,
)

__all__ = [
    "load_classifier",
    "load_encoder",
    "load_model",
    "load_tokenizer",
    "mirror",
    "resolve",
    "resolved_revision",
    "snapshot",
]
