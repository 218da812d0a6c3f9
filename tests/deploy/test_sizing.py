"""The sizing page's figures are its script's, and the formulas those of the pool."""

from __future__ import annotations

import pytest
import torch

from deploy.sizing import (
    COMPACT,
    DENSE,
    GIB,
    MODELS,
    Load,
    Model,
    network_bytes_per_second,
    network_table,
    pool_bytes,
    prefills_per_decode,
    sequences,
    table,
)
from kvstore.cache import LayerShape
from kvstore.pool import PagePool, metadata_page_bytes, pages_bound, row_page_bytes
from services.decode.options import page_rows_for
from services.runtime.process.options import ModelOptions
from tests.deploy.rendered import ROOT

_SMALL = Model("small", 3, 2, 16, 1e6, value_bytes=4)


def test_the_page_shows_what_the_script_prints() -> None:
    page = (ROOT / "docs" / "sizing.md").read_text()
    [llama] = [model for model in MODELS if model.name == "Llama-3.1-8B"]
    assert table() in page
    assert network_table(llama) in page
    assert f"{prefills_per_decode(DENSE, 10_000, 0.03, 32):.1f} prefills a decode" in page


@pytest.mark.parametrize("tokens", [16, 33, 200])
def test_a_pool_holds_as_many_dense_sequences_as_the_formula_says(tokens: int) -> None:
    shapes = [LayerShape(2, 4, 16)] * _SMALL.layers
    rows = page_rows_for(0, ModelOptions())
    assert rows == _SMALL.page_rows
    page_bytes = row_page_bytes(rows, 16, torch.float32) + metadata_page_bytes(rows)
    bytes_of_pool = 400 * page_bytes
    pool = PagePool(shapes, pages=400, page_rows=rows, dtype=torch.float32)
    each = pages_bound(shapes, tokens, rows)
    held = 0
    while pool.free.rows >= each.rows:
        pool.open(tokens, each)
        held += 1
    assert held == sequences(bytes_of_pool, _SMALL, Load(tokens - 5, 5))
    assert pool.dense_bytes == held * tokens * _SMALL.token_bytes


def test_formulas_by_hand() -> None:
    [llama] = [model for model in MODELS if model.name == "Llama-3.1-8B"]
    assert llama.token_bytes == 128 * 1024
    assert pool_bytes(80 * GIB, llama) == pytest.approx(0.9 * 80 * GIB - 16.06e9 - 6 * GIB)
    # a second of prefill for 256 tokens of 10 ms each, ten at once: .256 s of decode
    assert prefills_per_decode(Load(1000, 256), 1000, 0.01, 10) == pytest.approx(1 / 0.256)
    assert network_bytes_per_second(llama, Load(1000, 1, kept=0.5), 2) == 1000 * 128 * 1024
    assert COMPACT.resident_bytes(llama) < 0.55 * DENSE.resident_bytes(llama)
