"""What notebooks call: whole experiments over the rooms below."""
