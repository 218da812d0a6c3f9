"""Checks of the repository's own text and structure, run by `make lint` and by hand."""
