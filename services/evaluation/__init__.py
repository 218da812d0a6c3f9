"""Evaluation of policies: quality, bytes and time, measured on a model's own predictions."""
