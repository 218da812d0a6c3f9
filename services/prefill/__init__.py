"""Prefill: a prompt becomes a compact cache."""
