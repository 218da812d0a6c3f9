"""Layout of keys and values of one head size under a codec."""

from __future__ import annotations

import dataclasses

import torch

from kvstore.row_codecs.layout import RowLayout
from kvstore.row_codecs.names import MODEL_ROWS, RowCodec


@dataclasses.dataclass(frozen=True, slots=True)
class KeyValueLayout:
    """A codec applied to heads of `head_size` elements that the model computes in `dtype`."""

    codec: RowCodec
    head_size: int
    dtype: torch.dtype

    @property
    def keys(self) -> RowLayout:
        return RowLayout(self.codec.keys, self.head_size, self.dtype)

    @property
    def values(self) -> RowLayout:
        return RowLayout(self.codec.values, self.head_size, self.dtype)

    @property
    def row_bytes(self) -> int:
        """A key and a value, scales included."""
        return self.keys.row_bytes + self.values.row_bytes

    @property
    def unquantized(self) -> bool:
        """Whether rows are simply what the model computes."""
        return self.codec == MODEL_ROWS
