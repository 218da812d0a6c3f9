"""The bytes of one coded row."""

from __future__ import annotations

import dataclasses

import torch

from kvstore.row_codecs.names import ElementCodec

# scale, and for int4 the value of code 0: bfloat16, which a kernel reads with one shift
_SCALE_BYTES = 2


@dataclasses.dataclass(frozen=True, slots=True)
class RowLayout:
    """A row of `size` elements, which the model computes in `dtype`, under a codec.

    | codec | bytes of a row of D elements |
    |---|---|
    | model | D elements of the model's dtype |
    | fp8 | D × e4m3, scale |
    | int8 | D × int8, scale |
    | int4 | ⌈D/2⌉ bytes, scale, offset |

    Scale and offset are little-endian bfloat16. Byte i of int4 holds element i in its low half and
    element i + ⌈D/2⌉ in its high half, so that a kernel unpacks two runs.
    """

    codec: ElementCodec
    size: int
    dtype: torch.dtype

    @property
    def code_bytes(self) -> int:
        """Bytes before the scale."""
        match self.codec:
            case ElementCodec.MODEL:
                return self.size * self.dtype.itemsize
            case ElementCodec.INT4:
                return -(-self.size // 2)
            case _:
                return self.size

    @property
    def row_bytes(self) -> int:
        """Everything that a row takes."""
        match self.codec:
            case ElementCodec.MODEL:
                return self.code_bytes
            case ElementCodec.INT4:
                return self.code_bytes + 2 * _SCALE_BYTES
            case _:
                return self.code_bytes + _SCALE_BYTES

    @property
    def storage_dtype(self) -> torch.dtype:
        """The dtype of the tensor `[R, width]` that holds rows."""
        return self.dtype if self.codec is ElementCodec.MODEL else torch.uint8

    @property
    def width(self) -> int:
        """Elements of `storage_dtype` in a row."""
        return self.row_bytes // self.storage_dtype.itemsize

    @property
    def rotated(self) -> bool:
        """Whether rows are rotated before they are coded; see rotation.py."""
        return self.codec is ElementCodec.INT4
