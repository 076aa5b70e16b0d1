"""Measuring a behaviour, and everything that a surgery should have left alone."""
