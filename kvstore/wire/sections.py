"""The tensor sections of a layer: which there are, how large, and their raw bytes."""

from __future__ import annotations

import dataclasses
import math
import sys

import torch

from kvstore.cache import RaggedLayer
from kvstore.errors import CorruptCache
from kvstore.row_codecs import KeyValueLayout
from kvstore.wire.frames import Frame, FrameKind
from kvstore.wire.index import LayerIndex

# the format is little-endian and tensors are sent as they lie in memory
assert sys.byteorder == "little"

ROW_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


_NO_WEIGHTS = torch.empty(0)


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """One tensor of a layer as the index announces it."""

    kind: FrameKind
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def name(self) -> str:
        """The field of `RaggedLayer` that holds it."""
        return self.kind.name.lower()


def row_dtype(name: str) -> torch.dtype:
    """The dtype of keys and values; raises `CorruptCache` where the format has none so named."""
    if name not in ROW_DTYPES:
        raise CorruptCache("header names an unknown dtype")
    return ROW_DTYPES[name]


def sections_of(index: LayerIndex, layout: KeyValueLayout) -> tuple[Section, ...]:
    """The sections in stream order, empty ones included; log-weights only where there are any."""
    rows, keys, values = index.total_rows, layout.keys, layout.values
    weights = Section(FrameKind.LOG_WEIGHTS, torch.float32, (index.weighted_rows,))
    return (
        Section(FrameKind.KEYS, keys.storage_dtype, (rows, keys.width)),
        Section(FrameKind.VALUES, values.storage_dtype, (rows, values.width)),
        Section(FrameKind.POSITIONS, torch.int32, (index.total_rows,)),
        Section(FrameKind.SCORES, torch.float32, (index.scored_rows,)),
        Section(FrameKind.FLAGS, torch.uint8, (index.flagged_rows,)),
        *((weights,) if any(index.weighted) else ()),
    )


def section_tensor(layer: RaggedLayer, section: Section) -> torch.Tensor:
    """The layer's tensor for a section."""
    tensor = getattr(layer, section.name)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def byte_view(tensor: torch.Tensor) -> memoryview:
    """A contiguous CPU tensor's own memory as bytes; writing to the view writes to the tensor."""
    assert tensor.is_contiguous()
    return tensor.view(-1).view(torch.uint8).numpy().data


def payload_view(layer: RaggedLayer, frame: Frame) -> memoryview | None:
    """A tensor frame's payload where it lies in the layer; None where the tensor is no such memory.

    Writing to the view would write to the tensor.
    """
    tensor = getattr(layer, frame.kind.name.lower())
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    return byte_view(tensor.detach())[frame.offset : frame.offset + len(frame.payload)]


def layer_of(
    index: LayerIndex, layout: KeyValueLayout, tensors: dict[FrameKind, torch.Tensor]
) -> RaggedLayer:
    """Put a received layer together."""
    return RaggedLayer(
        keys=tensors[FrameKind.KEYS],
        values=tensors[FrameKind.VALUES],
        positions=tensors[FrameKind.POSITIONS],
        head_offsets=index.head_offsets(),
        rules=index.rules,
        attention_coverage=index.attention_coverage,
        scores=tensors[FrameKind.SCORES],
        flags=tensors[FrameKind.FLAGS],
        log_weights=tensors.get(FrameKind.LOG_WEIGHTS, _NO_WEIGHTS),
        weighted=index.weighted,
        layout=None if layout.unquantized else layout,
    )
