"""Measurements of a model that are taken once, before any prompt."""
