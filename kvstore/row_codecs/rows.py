"""Rows into bytes and back, in plain torch; the slow and obvious form is reference.py."""

from __future__ import annotations

import torch

from kvstore.row_codecs.layout import RowLayout
from kvstore.row_codecs.names import ElementCodec
from kvstore.row_codecs.rotation import rotate

_FP8_MAX = 448.0
_INT8_MAX = 127.0
_INT4_STEPS = 15.0


def encode_rows(
    rows: torch.Tensor, layout: RowLayout, *, pre_rotated: bool = False
) -> torch.Tensor:
    """`[..., D]` of any float dtype to `[..., width]` of the layout's storage dtype.

    `pre_rotated`: the rows have been rotated already where the layout rotates. A row with an
    element that is not finite decodes to NaN throughout, as does one whose scale overflows.
    """
    if layout.codec is ElementCodec.MODEL:
        return rows.to(layout.dtype)
    exact = rows.float()
    if layout.rotated and not pre_rotated:
        exact = rotate(exact)
    match layout.codec:
        case ElementCodec.FP8:
            scale = _round_up(exact.abs().amax(-1, keepdim=True) / _FP8_MAX)
            codes = _over(exact, scale).clamp(-_FP8_MAX, _FP8_MAX)
            return _packed(codes.to(torch.float8_e4m3fn), scale)
        case ElementCodec.INT8:
            scale = _round_up(exact.abs().amax(-1, keepdim=True) / _INT8_MAX)
            codes = _over(exact, scale).round().clamp(-_INT8_MAX, _INT8_MAX)
            return _packed(codes.nan_to_num().to(torch.int8), scale)
        case _:
            return _encode_int4(exact)


def decode_rows(
    stored: torch.Tensor, layout: RowLayout, *, keep_rotated: bool = False
) -> torch.Tensor:
    """`[..., width]` to f32 `[..., D]`; `keep_rotated`: leave rotated rows rotated."""
    if layout.codec is ElementCodec.MODEL:
        return stored.float()
    # copies: a view in another dtype needs whole rows of it, aligned
    codes = stored[..., : layout.code_bytes].clone(memory_format=torch.contiguous_format)
    scales = stored[..., layout.code_bytes :].clone(memory_format=torch.contiguous_format)
    scale = scales.view(torch.bfloat16).float()
    match layout.codec:
        case ElementCodec.FP8:
            return codes.view(torch.float8_e4m3fn).float() * scale
        case ElementCodec.INT8:
            return codes.view(torch.int8).float() * scale
        case _:
            pairs = torch.cat((codes & 15, codes >> 4), -1)[..., : layout.size]
            rows = pairs.float() * scale[..., :1] + scale[..., 1:]
            return rows if keep_rotated else rotate(rows)


def _encode_int4(exact: torch.Tensor) -> torch.Tensor:
    lowest = _round_down(exact.amin(-1, keepdim=True))
    scale = _round_up((exact.amax(-1, keepdim=True) - lowest.float()) / _INT4_STEPS)
    codes = _over(exact - lowest.float(), scale).round().clamp(0, _INT4_STEPS)
    codes = codes.nan_to_num().to(torch.uint8)
    half = -(-codes.shape[-1] // 2)
    low, high = codes[..., :half], codes[..., half:]
    if high.shape[-1] < half:
        high = torch.nn.functional.pad(high, (0, 1))
    return _packed(low | high << 4, torch.cat((scale, lowest), -1))


def _over(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Values over their scale; 0 where the scale is 0, because then they all are."""
    divisor = scale.float()
    return values / divisor.where(divisor != 0, torch.ones_like(divisor))


def _packed(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Codes of one byte each and bfloat16 scales as the bytes of rows."""
    return torch.cat((codes.view(torch.uint8), scales.contiguous().view(torch.uint8)), -1)


def _round_up(values: torch.Tensor) -> torch.Tensor:
    """The least bfloat16 not below f32 `values` >= 0, so that no code needs to be clipped."""
    nearest = values.bfloat16()
    above = (nearest.view(torch.int16) + 1).view(torch.bfloat16)
    return torch.where((nearest.float() < values), above, nearest)


def _round_down(values: torch.Tensor) -> torch.Tensor:
    """The greatest bfloat16 not above f32 `values` of either sign."""
    nearest = values.bfloat16()
    bits = nearest.view(torch.int16)
    # what is above 0 goes towards it, what is below away from it
    below = torch.where(bits > 0, bits - 1, bits + 1)
    return torch.where(nearest.float() > values, below.view(torch.bfloat16), nearest)
