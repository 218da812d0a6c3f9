"""Coded rows against the obvious reference, and their documented error bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import InvalidParameter
from kvstore.row_codecs import (
    ElementCodec,
    KeyValueLayout,
    RowCodec,
    RowLayout,
    decode_rows,
    encode_rows,
)
from kvstore.row_codecs.reference import decode_row, error_bound
from kvstore.row_codecs.rotation import hadamard, rotate

CODED = [ElementCodec.FP8, ElementCodec.INT8, ElementCodec.INT4]
# f32 arithmetic on the way, relative to the largest element
ROUNDING = 1e-6
# where bfloat16 runs out of exponents
TINY = 1e-39

elements = st.one_of(
    st.floats(-1e3, 1e3, width=32),
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.just(0.0),
    st.sampled_from([1e-44, -1e-38, 65504.0]),
)


@st.composite
def some_rows(draw: st.DrawFn) -> list[float]:
    size = draw(st.sampled_from([1, 2, 3, 5, 8, 12, 64]))
    if draw(st.booleans()):
        return [draw(elements)] * size
    return draw(st.lists(elements, min_size=size, max_size=size))


def layout_of(codec: ElementCodec, size: int) -> RowLayout:
    return RowLayout(codec, size, torch.float32)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CODED), some_rows())
def test_a_row_comes_back_within_its_documented_error(
    codec: ElementCodec, row: list[float]
) -> None:
    layout = layout_of(codec, len(row))
    stored = encode_rows(torch.tensor([row]), layout)
    assert stored.dtype == layout.storage_dtype
    assert stored.shape == (1, layout.width)
    slack = ROUNDING * len(row) * max(map(abs, row)) + TINY
    bounds = error_bound(row, layout)
    decoded = decode_row(bytes(stored[0].tolist()), layout)
    for exact, got, bound in zip(row, decoded, bounds, strict=True):
        assert abs(exact - got) <= bound + slack


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(CODED), some_rows())
def test_the_reference_reads_the_same_elements(codec: ElementCodec, row: list[float]) -> None:
    layout = layout_of(codec, len(row))
    stored = encode_rows(torch.tensor([row]), layout)
    largest = max(map(abs, row))
    expected = decode_row(bytes(stored[0].tolist()), layout)
    assert decode_rows(stored, layout)[0].tolist() == pytest.approx(
        expected, rel=1e-5, abs=ROUNDING * len(row) * largest + TINY
    )


@pytest.mark.parametrize("codec", CODED)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3.4e38])
def test_a_row_that_is_not_finite_never_looks_like_one(codec: ElementCodec, bad: float) -> None:
    layout = layout_of(codec, 8)
    rows = torch.randn(3, 8)
    # the last overflows the sum of a rotation, and the scale of int4
    rows[1] = torch.tensor([bad, -bad] * 4) if math.isfinite(bad) else rows[1]
    rows[1, 5] = bad
    decoded = decode_rows(encode_rows(rows, layout), layout)
    if not math.isfinite(bad) or codec is ElementCodec.INT4:
        assert decoded[1].isnan().all()
    assert decoded[[0, 2]].isfinite().all()


@pytest.mark.parametrize("codec", CODED)
def test_rows_of_one_value_come_back_as_such(codec: ElementCodec) -> None:
    layout = layout_of(codec, 64)
    for value in (0.0, 1.0, -3.0, 1e-3):
        decoded = decode_rows(encode_rows(torch.full((1, 64), value), layout), layout)
        assert decoded.flatten().tolist() == pytest.approx([value] * 64, rel=0.07, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_the_models_dtype_are_stored_unchanged(dtype: torch.dtype) -> None:
    rows = torch.randn(5, 8).to(dtype)
    layout = RowLayout(ElementCodec.MODEL, 8, dtype)
    assert torch.equal(encode_rows(rows, layout), rows)
    assert torch.equal(decode_rows(rows, layout), rows.float())


def test_a_row_is_coded_alone() -> None:
    """A row can be overwritten, moved or appended without its neighbours."""
    rows = torch.randn(2, 3, 7, 64)
    for codec in CODED:
        layout = layout_of(codec, 64)
        together = encode_rows(rows, layout)
        assert torch.equal(together[1, 2, 4], encode_rows(rows[1, 2, 4][None], layout)[0])


def test_bytes_count_scales() -> None:
    sizes = {codec: RowLayout(codec, 64, torch.float16).row_bytes for codec in (*CODED, "model")}
    assert sizes == {"fp8": 66, "int8": 66, "int4": 36, "model": 128}
    assert RowLayout(ElementCodec.INT4, 5, torch.float16).row_bytes == 3 + 4
    assert KeyValueLayout(RowCodec.parse("int8/int4"), 64, torch.float16).row_bytes == 102


@pytest.mark.parametrize("size", [1, 2, 8, 12, 64, 80, 96, 128])
def test_the_rotation_keeps_products_and_is_its_own_inverse(size: int) -> None:
    exact = hadamard(size).double()
    assert torch.allclose(exact @ exact, torch.eye(size).double(), atol=1e-6)
    q, k = torch.randn(2, 5, size)
    assert torch.allclose((rotate(q) * rotate(k)).sum(-1), (q * k).sum(-1), atol=1e-4)
    assert torch.allclose(rotate(rotate(k)), k, atol=1e-5)


@pytest.mark.parametrize("pre_rotated", [False, True])
def test_rows_that_are_rotated_already_have_the_same_codes(pre_rotated: bool) -> None:
    layout, rows = layout_of(ElementCodec.INT4, 64), torch.randn(4, 64)
    given_rows = rotate(rows) if pre_rotated else rows
    stored = encode_rows(given_rows, layout, pre_rotated=pre_rotated)
    assert torch.equal(stored, encode_rows(rows, layout))
    kept = decode_rows(stored, layout, keep_rotated=True)
    assert torch.allclose(rotate(kept), decode_rows(stored, layout))


@pytest.mark.parametrize("spelling", ["", "int2", "int8/int4/fp8", "int8/", "INT8", "model/"])
def test_an_unknown_codec_is_refused_by_name(spelling: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        RowCodec.parse(spelling)
    assert caught.value.field == "codec"


@pytest.mark.parametrize("spelling", ["model", "int8", "fp8/int4", "model/int8"])
def test_a_codec_is_spelled_in_one_way(spelling: str) -> None:
    assert RowCodec.parse(spelling).name == spelling
    assert RowCodec.parse("int4/int4").name == "int4"
