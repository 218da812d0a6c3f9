"""The product of two tiles inside a Triton kernel, f32 sums."""

from __future__ import annotations

import triton
import triton.language as tl

# whether Triton's interpreter runs kernels, and no machine code
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def tile_product(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """`a [M, K]` times `b [K, N]`: 16-bit operands on tensor cores, f32 ones exactly."""
    # it multiplies the bit patterns of bfloat16
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")
