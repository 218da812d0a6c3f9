"""The size of prefill's chunks follows from the option and the device."""

from __future__ import annotations

import pytest

from services.prefill.options import chunk_tokens_for
from services.runtime.process.serve_error import ServeError


def test_chunks_are_larger_on_cuda() -> None:
    assert chunk_tokens_for(0, "cpu") == 1024
    assert chunk_tokens_for(0, "cuda:1") == 8192
    assert chunk_tokens_for(16, "cuda") == 16


def test_chunks_of_few_tokens_are_refused() -> None:
    with pytest.raises(ServeError, match="--chunk-tokens: 15 is less than 16"):
        chunk_tokens_for(15, "cpu")
