"""Attention of fed tokens over one layer's ragged heads in pages."""

from kvstore.kernels.ragged_attention.op import ragged_attention

__all__ = ["ragged_attention"]
