"""The gather of kept rows: copied bit by bit, and coded to within half a step of the codec."""

from __future__ import annotations

import torch

from benchmarks.gpu.figures import Figures
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.smoke.errors import NOT_FINITE, figure, twice
from kvstore.kernels.compact.kernel import gather_rows
from kvstore.row_codecs import ElementCodec, KeyValueLayout, RowCodec, RowLayout, decode_rows
from kvstore.row_codecs.rotation import hadamard

_CODECS = ("model", "fp8", "int8", "int8/int4", "int4")
_HEADS, _SIZE = 3, 128
# half a step, and what rounding a scale to 16 bits and a rotation in 16 bits add to it
_STEPS = {
    ElementCodec.FP8: 0.5 * 2**-3 * 1.02,
    ElementCodec.INT8: 0.51 / 127,
    ElementCodec.INT4: 0.56 / 15,
}


def check(here: Setting) -> Figures:
    """Yield the error of each codec."""
    tokens = 3000 if here.device.type == "cuda" else 300
    k, v = torch.randn(2, _HEADS, tokens, _SIZE, device=here.device).bfloat16()
    kept = [torch.randperm(tokens, device=here.device)[:n].sort().values for n in (0, 63, 257)]
    rows = torch.cat(kept).int()
    ends = torch.tensor([len(each) for each in kept], device=here.device).cumsum(0).int()
    exact = [torch.cat([x[h, r] for h, r in enumerate(kept)]) for x in (k, v)]
    for name in _CODECS:
        coding = KeyValueLayout(RowCodec.parse(name), _SIZE, torch.bfloat16)

        def gather(coding: KeyValueLayout = coding) -> list[torch.Tensor]:
            return list(gather_rows(k, v, rows, ends, coding))

        found, same = twice(here.part, gather)
        worst = max(
            _error(*each) for each in zip(found, exact, (coding.keys, coding.values), strict=True)
        )
        yield f"smoke_gather_{name}", figure(worst, same, "the rows, or half a step of the codec")


def _error(found: torch.Tensor, exact: torch.Tensor, layout: RowLayout) -> float:
    """Return the error in half steps, a share of a row's greatest element or of its range."""
    if layout.codec is ElementCodec.MODEL:
        return 0.0 if torch.equal(found, exact) else NOT_FINITE
    rows = exact.double()
    if layout.rotated:
        rows = rows @ hadamard(_SIZE).to(rows)
    decoded = decode_rows(found, layout, keep_rotated=True).double()
    if not decoded.isfinite().all():
        return NOT_FINITE
    if layout.codec is ElementCodec.FP8:
        # a share of each element, whose least step is that of the least normal number
        scale = rows.abs().maximum(rows.abs().amax(-1, keepdim=True) / 448 * 2**-6)
    elif layout.codec is ElementCodec.INT8:
        scale = rows.abs().amax(-1, keepdim=True)
    else:
        scale = rows.amax(-1, keepdim=True) - rows.amin(-1, keepdim=True)
    return float(((decoded - rows).abs() / scale).max()) / _STEPS[layout.codec]
