"""The codecs once more, element by element in float64: the oracle of the tests, used nowhere else.

Written from docs/codecs.md; shares only the layout's sizes with the real one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from kvstore.row_codecs.layout import RowLayout
from kvstore.row_codecs.names import ElementCodec

_CODE_STEPS = {ElementCodec.FP8: 448.0, ElementCodec.INT8: 127.0, ElementCodec.INT4: 15.0}


def decode_row(stored: bytes, layout: RowLayout) -> list[float]:
    """One coded row's D elements."""
    codes = stored[: layout.code_bytes]
    scales = [bfloat16(pair) for pair in struct.iter_unpack("<H", stored[layout.code_bytes :])]
    match layout.codec:
        case ElementCodec.FP8:
            return [e4m3(code) * scales[0] for code in codes]
        case ElementCodec.INT8:
            return [struct.unpack("b", bytes([code]))[0] * scales[0] for code in codes]
        case _:
            halves = [code & 15 for code in codes] + [code >> 4 for code in codes]
            return rotate_row([half * scales[0] + scales[1] for half in halves[: layout.size]])


def error_bound(row: Sequence[float], layout: RowLayout) -> list[float]:
    """Return the largest error of each decoded element, besides f32's own rounding.

    A scale is at most 2⁻⁷ above the least one that would do, and half a step is the error. The
    offset of int4 lies at most 2⁻⁷ of itself below the lowest element. fp8 has four significant
    bits, and half a smallest step where it runs out of exponents. What a rotation does to an error
    is bounded by its length.
    """
    steps = _CODE_STEPS[layout.codec]
    if layout.codec is ElementCodec.INT4:
        rotated = rotate_row(row)
        low, high = min(rotated), max(rotated)
        step = (high - low + abs(low) / 128) / steps * (1 + 1 / 128)
        return [step / 2 * math.sqrt(layout.size)] * layout.size
    step = max(map(abs, row)) / steps * (1 + 1 / 128)
    if layout.codec is ElementCodec.INT8:
        return [step / 2] * layout.size
    return [max(abs(element) / 16, step * 2**-10) for element in row]


def rotate_row(row: Sequence[float]) -> list[float]:
    """The Hadamard rotation by its definition: sign (−1) to the number of common bits."""
    block = len(row) & -len(row)
    out = []
    for i in range(len(row)):
        first = i - i % block
        signed = [
            -row[first + j] if (i % block & j).bit_count() % 2 else row[first + j]
            for j in range(block)
        ]
        out.append(math.fsum(signed) / math.sqrt(block))
    return out


def e4m3(code: int) -> float:
    """A float8 of 4 exponent and 3 mantissa bits, bias 7, no infinities (OCP FP8)."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def bfloat16(pair: tuple[int]) -> float:
    """The upper half of a float32."""
    value: float = struct.unpack("<f", struct.pack("<I", pair[0] << 16))[0]
    return value
