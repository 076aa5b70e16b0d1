"""What to ask of an edited model: is it still the same one, was it erased or hushed, what broke."""
