"""Model surgery: find a behaviour's direction in a language model, edit it out of the weights."""

__version__ = "0.1.0"
