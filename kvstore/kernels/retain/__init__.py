"""What becomes of every head's rows, and of the new ones, after a step's last layer."""

from kvstore.kernels.retain.op import apply_decision, decide

__all__ = ["apply_decision", "decide"]
