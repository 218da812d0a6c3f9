"""What is measured of a model once, before any prompt."""
