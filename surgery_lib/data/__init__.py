"""Data sets as profiles describe them: where they lie, how they are read and split."""
