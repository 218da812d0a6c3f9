"""docs/wire-format.md shows a cache in full; it must be what the code writes."""

from __future__ import annotations

import pathlib
import struct

import torch

from kvstore.cache import CompactCache, Fingerprint, LayerShape, ModelFingerprint, RaggedLayer
from kvstore.rules import RetentionRule, ScoreUpdate, TokenClass
from kvstore.wire import Frame, FrameKind
from tests.kvstore.wire.caches import encode

PAGE = (pathlib.Path(__file__).parents[3] / "docs" / "wire-format.md").read_text()
CONTROL = (FrameKind.HEADER, FrameKind.INDEX, FrameKind.TRAILER)


def example() -> list[Frame]:
    """The page's cache: one row of one head."""
    rule = RetentionRule(
        sinks=1, budget_rows=2, score_update=ScoreUpdate.SUM, protected=TokenClass.SPECIAL
    )
    layer = RaggedLayer(
        keys=torch.tensor([[1.0, -2.0]], dtype=torch.float16),
        values=torch.tensor([[0.5, 0.25]], dtype=torch.float16),
        positions=torch.tensor([3], dtype=torch.int32),
        head_offsets=(0, 1),
        rules=(rule,),
        attention_coverage=(1.0,),
        scores=torch.tensor([1.5]),
        flags=torch.tensor([1], dtype=torch.uint8),
    )
    model = ModelFingerprint("tiny", "main", "00", "11", "float16")
    identity = Fingerprint(model, "22", "full", "{}")
    return encode(CompactCache(identity, (layer,), 4), (LayerShape(1, 2, 2),))


def test_the_worked_example_is_what_is_written() -> None:
    told = []
    for f in example():
        text = f.payload.decode() if f.kind in CONTROL else f.payload.hex(" ")
        told.append(
            f"`{f.kind.name}`, layer {f.layer}, offset {f.offset}, {len(f.payload)} bytes, "
            f"checksum `{f.checksum:08x}`\n\n    {text}\n"
        )
    assert "\n".join(told) in PAGE


def test_the_digest_record_shown_is_the_index_of_the_example() -> None:
    f = example()[1]
    record = struct.pack("<IIQQI", f.layer, f.kind, f.offset, len(f.payload), f.checksum)
    assert f"digest as\n\n    {record.hex(' ')}\n" in PAGE
