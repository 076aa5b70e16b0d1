"""Choosing probe, rows and strength on validation data, under a budget of damage."""
