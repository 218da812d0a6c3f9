"""The rows of a page follow from the option, the device and the dtype."""

from __future__ import annotations

import dataclasses

from services.decode.options import page_rows_for
from services.runtime.process.options import ModelOptions

_ON_CUDA = ModelOptions(model="any", device="cuda", dtype="bfloat16")


def test_pages_are_larger_for_16_bits_on_cuda() -> None:
    assert page_rows_for(0, _ON_CUDA) == 64
    assert page_rows_for(0, dataclasses.replace(_ON_CUDA, dtype="float32")) == 16
    assert page_rows_for(0, dataclasses.replace(_ON_CUDA, device="cpu")) == 16
    assert page_rows_for(8, _ON_CUDA) == 8
