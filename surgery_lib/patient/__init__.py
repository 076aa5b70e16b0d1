"""The embedded model: the world that its text comes from, its tokenizer, training and tasks."""
