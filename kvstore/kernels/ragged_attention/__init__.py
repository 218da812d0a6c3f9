"""Attention of a fed block over one layer's ragged heads."""

from kvstore.kernels.ragged_attention.op import AttentionStep, ragged_attention

__all__ = ["AttentionStep", "ragged_attention"]
