"""Codes as 16-bit numbers inside a Triton kernel: four bytes a time, as they lie in a word.

Triton converts element by element, in four instructions each, and that, not memory, would be what
attention on coded rows waits for. Numbers are made in the bits of 16-bit floats instead: codes
below the bits of a power of two, which is then taken away; or codes as they are, which in bfloat16
are multiples of the least number. Nothing is rounded.

Pure calls are moved behind the change of layout for the tensor cores, and that is good for keys:
products go along their rows, so a thread has whole words there, and shared memory holds codes
alone. Of values it would have single bytes of many words. Their calls are marked impure.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvstore.kernels.tile_product import INTERPRETED

# together 2^133; the interpreter does not read what is below the least normal number
_HALFWAY = tl.constexpr(1.0 if INTERPRETED else 2.0**64)
INT4_SCALE = tl.constexpr(1.0 if INTERPRETED else 2.0**69)
# u = code + 128 below the bits of 1024 is 1024 + u, and 1152 less is the code
_INT8_TO_FP16 = tl.constexpr("""{
    .reg .b32 biased, low, high, below;
    mov.b32 below, 0x64806480;
    xor.b32 biased, $2, 0x80808080;
    prmt.b32 low, biased, 0x64646464, 0x4140;
    prmt.b32 high, biased, 0x64646464, 0x4342;
    sub.f16x2 $0, low, below;
    sub.f16x2 $1, high, below;
}""")
# lower seven bits below the bits of 128, and the sign that makes -128 into -256
_INT8_TO_BF16 = tl.constexpr("""{
    .reg .b32 low, high, below, one;
    mov.b32 one, 0x3f803f80;
    prmt.b32 low, $2, 0x43434343, 0x4140;
    prmt.b32 high, $2, 0x43434343, 0x4342;
    lop3.b32 below, low, 0x00800080, 0xc300c300, 0xea;
    and.b32 low, low, 0xff7fff7f;
    fma.rn.bf16x2 $0, low, one, below;
    lop3.b32 below, high, 0x00800080, 0xc300c300, 0xea;
    and.b32 high, high, 0xff7fff7f;
    fma.rn.bf16x2 $1, high, one, below;
}""")
# upper halves are sixteen times as much below the bits of 1024
_INT4_TO_FP16 = tl.constexpr("""{
    .reg .b32 two, pair, below, part, least;
    mov.b32 below, 0x64006400;
    mov.b32 part, 0x2c002c00;
    mov.b32 least, 0xd400d400;
    prmt.b32 two, $4, 0, 0x4140;
    lop3.b32 pair, two, 0x000f000f, below, 0xea;
    sub.f16x2 $0, pair, below;
    lop3.b32 pair, two, 0x00f000f0, below, 0xea;
    fma.rn.f16x2 $2, pair, part, least;
    prmt.b32 two, $4, 0, 0x4342;
    lop3.b32 pair, two, 0x000f000f, below, 0xea;
    sub.f16x2 $1, pair, below;
    lop3.b32 pair, two, 0x00f000f0, below, 0xea;
    fma.rn.f16x2 $3, pair, part, least;
}""")
# the bits of a byte are as many times 2^-133. Tensor cores take such numbers as they are: A100 by
# the measurements of Fasi et al. (2021), H100 and H200 by those of Khattak and Mikaitis (2025)
_INT4_TO_BF16 = tl.constexpr("""{
    .reg .b32 two;
    prmt.b32 two, $4, 0, 0x4140;
    and.b32 $0, two, 0x000f000f;
    and.b32 $2, two, 0x00f000f0;
    prmt.b32 two, $4, 0, 0x4342;
    and.b32 $1, two, 0x000f000f;
    and.b32 $3, two, 0x00f000f0;
}""")
# sign and size in the place of the wider number's; of bfloat16 the exponent is then 120 too small
_FP8_TO_FP16 = tl.constexpr("""{
    .reg .b32 low, high, size;
    prmt.b32 low, $2, 0, 0x1404;
    prmt.b32 high, $2, 0, 0x3424;
    and.b32 size, low, 0x7f007f00;
    shr.u32 size, size, 1;
    lop3.b32 $0, low, 0x80008000, size, 0xea;
    and.b32 size, high, 0x7f007f00;
    shr.u32 size, size, 1;
    lop3.b32 $1, high, 0x80008000, size, 0xea;
}""")
_FP8_TO_BF16 = tl.constexpr("""{
    .reg .b32 low, high, size, factor, zero;
    mov.b32 factor, 0x77807780;
    mov.b32 zero, 0x80008000;
    prmt.b32 low, $2, 0, 0x1404;
    prmt.b32 high, $2, 0, 0x3424;
    and.b32 size, low, 0x7f007f00;
    shr.u32 size, size, 4;
    lop3.b32 low, low, 0x80008000, size, 0xea;
    fma.rn.bf16x2 $0, low, factor, zero;
    and.b32 size, high, 0x7f007f00;
    shr.u32 size, size, 4;
    lop3.b32 high, high, 0x80008000, size, 0xea;
    fma.rn.bf16x2 $1, high, factor, zero;
}""")


@triton.jit
def _converted(
    byte: tl.tensor,
    TO_FP16: tl.constexpr,
    TO_BF16: tl.constexpr,
    TYPE: tl.constexpr,
    PURE: tl.constexpr,
) -> tl.tensor:
    """A number for each byte, by the instructions for the type."""
    if tl.float16 == TYPE:
        numbers = tl.inline_asm_elementwise(
            TO_FP16, "=r,=r,r", [byte], dtype=tl.float16, is_pure=PURE, pack=4
        )
    else:
        numbers = tl.inline_asm_elementwise(
            TO_BF16, "=r,=r,r", [byte], dtype=tl.bfloat16, is_pure=PURE, pack=4
        )
    return numbers


@triton.jit
def int8_codes(byte: tl.tensor, TYPE: tl.constexpr, PURE: tl.constexpr) -> tl.tensor:
    """Return bytes as int8 numbers."""
    if INTERPRETED or tl.float32 == TYPE:
        codes = byte.to(tl.int8, bitcast=True).to(tl.float32).to(TYPE)
    else:
        codes = _converted(byte, _INT8_TO_FP16, _INT8_TO_BF16, TYPE, PURE)
    return codes


@triton.jit
def fp8_codes(byte: tl.tensor, TYPE: tl.constexpr, PURE: tl.constexpr) -> tl.tensor:
    """Return bytes as e4m3 numbers, times 2^-8."""
    if INTERPRETED or tl.float32 == TYPE:
        # in the bits of float16, whose exponent is biased by eight more
        bits = byte.to(tl.int32)
        half = (((bits & 128) << 8) | ((bits & 127) << 7)).to(tl.int16)
        codes = half.to(tl.float16, bitcast=True).to(tl.float32).to(TYPE)
    else:
        codes = _converted(byte, _FP8_TO_FP16, _FP8_TO_BF16, TYPE, PURE)
    return codes


@triton.jit
def int4_codes(pair: tl.tensor, TYPE: tl.constexpr, PURE: tl.constexpr) -> tl.tensor:
    """Bytes `[N, K]` as `[N, 2 K]` numbers 0 to 15; bfloat16 ones by other units: `int4_unit`.

    The lower halves of two bytes and then their upper halves: so pairs stay in one register.
    """
    ROWS: tl.constexpr = pair.shape[0]
    PAIRS: tl.constexpr = pair.shape[1] // 2
    pair = tl.reshape(pair, (ROWS, PAIRS, 2))
    if INTERPRETED or tl.float32 == TYPE:
        UPPER: tl.constexpr = 16.0 if tl.bfloat16 == TYPE else 1.0
        low = (pair & 15).to(tl.float32).to(TYPE)
        high = ((pair >> 4).to(tl.float32) * UPPER).to(TYPE)
    elif tl.float16 == TYPE:
        low, high = tl.inline_asm_elementwise(
            _INT4_TO_FP16,
            "=r,=r,=r,=r,r",
            [pair],
            dtype=(tl.float16, tl.float16),
            is_pure=PURE,
            pack=4,
        )
    else:
        low, high = tl.inline_asm_elementwise(
            _INT4_TO_BF16,
            "=r,=r,=r,=r,r",
            [pair],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=PURE,
            pack=4,
        )
    return tl.reshape(tl.permute(tl.join(low, high), (0, 1, 3, 2)), (ROWS, 4 * PAIRS))


@triton.jit
def int4_byte(column: tl.tensor) -> tl.tensor:
    """Return the byte that contains a column of `int4_codes`."""
    return column // 4 * 2 + column % 2


@triton.jit
def int4_upper(column: tl.tensor) -> tl.tensor:
    """1 where it is the upper half, else 0."""
    return column // 2 % 2


@triton.jit
def int4_unit(column: tl.tensor) -> tl.tensor:
    """Return the factor of a column of `int4_codes` in bfloat16, beside `INT4_SCALE`, f32.

    Queries take the factor before the product and results after it, so that products are normal
    numbers.
    """
    return tl.where(int4_upper(column) == 1, _HALFWAY * 0.0625, _HALFWAY)
