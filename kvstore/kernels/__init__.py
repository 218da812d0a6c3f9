"""Kernels: per operation its contract and dispatch, a plain reference, and fast forms."""
