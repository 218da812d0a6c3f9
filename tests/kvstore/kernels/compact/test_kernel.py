"""The gather kernel against indexing, and its codes against those of plain torch."""

from __future__ import annotations

import pytest
import torch

from kvstore.kernels.compact.reference import gather_rows as reference_rows
from kvstore.row_codecs import MODEL_ROWS, KeyValueLayout, RowCodec, decode_rows

kernel = pytest.importorskip("kvstore.kernels.compact.kernel")

TOKENS = 300
# heads empty, one row, and sizes around the tiles
COUNTS = ((0, 1, 63, 257), (0, 0, 0, 0), (300,), (5, 0, 0, 128, 0))


def chosen(counts: tuple[int, ...], device: torch.device) -> list[torch.Tensor]:
    return [torch.randperm(TOKENS)[:count].sort().values.to(device) for count in counts]


def joined(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all rows and where each head's end, as the gather takes them."""
    ends = torch.tensor([len(each) for each in rows]).cumsum(0)
    return torch.cat(rows).int(), ends.int().to(rows[0].device)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("counts", COUNTS)
def test_every_row_is_copied_to_its_place(
    counts: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    size = 24 if dtype == torch.float32 else 64
    k, v = torch.randn(2, len(counts), TOKENS, size, device=device).to(dtype)
    rows = chosen(counts, device)
    keys, values = kernel.gather_rows(k, v, *joined(rows), KeyValueLayout(MODEL_ROWS, size, dtype))
    expected = [torch.cat([x[h, r] for h, r in enumerate(rows)]) for x in (k, v)]
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])


def test_strides_of_any_kind(device: torch.device) -> None:
    k = torch.randn(TOKENS, 3, 32, device=device).transpose(0, 1)
    v = torch.randn(3, 32, TOKENS, device=device).transpose(1, 2)
    rows = chosen((7, 0, 130), device)
    layout = KeyValueLayout(MODEL_ROWS, 32, torch.float32)
    for found, expected in zip(
        kernel.gather_rows(k, v, *joined(rows), layout),
        reference_rows(k, v, *joined(rows), layout),
        strict=True,
    ):
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("codec", ["fp8", "int8", "int4", "int8/int4", "model/fp8"])
@pytest.mark.parametrize("size", [5, 24, 64])
def test_rows_are_coded_on_the_way(
    size: int, codec: str, dtype: torch.dtype, device: torch.device
) -> None:
    layout = KeyValueLayout(RowCodec.parse(codec), size, dtype)
    k, v = (torch.randn(2, 3, TOKENS, size, device=device) * 3).to(dtype)
    # a channel that outweighs the others, a row of zeros, equal ones, and the least there are
    k[..., 0] += 20
    k[0, 0], v[0, 0], k[0, 1], v[0, 1] = 0, 0, 2, -2
    k[0, 2] = v[0, 2] = torch.finfo(dtype).tiny
    rows = [torch.arange(9, device=device), *chosen((0, 70), device)]
    for found, expected, part in zip(
        kernel.gather_rows(k, v, *joined(rows), layout),
        reference_rows(k, v, *joined(rows), layout),
        (layout.keys, layout.values),
        strict=True,
    ):
        assert found.shape == expected.shape
        if not part.rotated:
            assert torch.equal(found, expected)
            continue
        # the rotation's last bit may turn a code that is nearly between two; then only by one
        same = (found == expected).all(-1)
        assert same.float().mean() > 0.9
        near, far = (decode_rows(x, part, keep_rotated=True) for x in (found, expected))
        step = (far.amax(-1) - far.amin(-1)) / 14
        assert ((near - far).abs().amax(-1) <= step + 1e-6).all()


# the interpreter's products warn of it
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("codec", ["fp8", "int8", "int4"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_decodes_to_nan(
    bad: float, codec: str, device: torch.device
) -> None:
    layout = KeyValueLayout(RowCodec.parse(codec), 8, torch.float32)
    k, v = torch.randn(2, 1, 4, 8, device=device)
    k[0, 1, 3] = v[0, 2, 5] = bad
    keys, values = kernel.gather_rows(k, v, *joined([torch.arange(4, device=device)]), layout)
    for stored, row, part in ((keys, 1, layout.keys), (values, 2, layout.values)):
        nan = decode_rows(stored, part, keep_rotated=True).isnan()
        assert nan[row].all()
        assert not nan[[n for n in range(4) if n != row]].any()


def test_the_same_inputs_give_the_same_bits(device: torch.device) -> None:
    layout = KeyValueLayout(RowCodec.parse("int4"), 24, torch.bfloat16)
    k, v = torch.randn(2, 2, TOKENS, 24, device=device).bfloat16()
    rows = chosen((70, 3), device)
    for one, other in zip(
        *(kernel.gather_rows(k, v, *joined(rows), layout) for _ in "ab"), strict=True
    ):
        assert torch.equal(one, other)
