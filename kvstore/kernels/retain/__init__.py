"""Retention: the choice among held and staged rows after a step's last layer."""

from kvstore.kernels.retain.op import apply_decision, decide

__all__ = ["apply_decision", "decide"]
