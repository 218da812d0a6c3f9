"""What becomes of a head's rows, and of the new ones, after a fed block."""

from kvstore.kernels.retain.moves import RetainMoves, RowMarks
from kvstore.kernels.retain.op import retain_moves

__all__ = ["RetainMoves", "RowMarks", "retain_moves"]
