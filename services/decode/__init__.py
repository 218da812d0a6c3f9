"""Decode: a compact cache becomes tokens."""
