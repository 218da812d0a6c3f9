"""Counting of bytes by the codec benchmark."""

from __future__ import annotations

import pytest

from benchmarks.row_codecs import best_at_sizes
from services.evaluation.prompt_record import fp16_bytes_kept
from tests.kvstore.wire.caches import two_layers


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_of_the_model_count_as_float16_whatever_was_computed_in(dtype: str) -> None:
    cache, _ = two_layers(dtype)
    marks = sum(4 * (one.rows + len(one.scores)) + len(one.flags) for one in cache.layers)
    rows = sum(one.rows * 2 * 2 * one.head_size for one in cache.layers)
    # one head of each layer sees no row beyond its horizon of 32
    dense = ((40 + 32 + 40) * 4 + (40 + 32) * 8) * 2 * 2
    share = fp16_bytes_kept(list(cache.layers), 40)
    assert share == pytest.approx((rows + marks) / dense)


def test_coded_rows_count_their_scales() -> None:
    cache, _ = two_layers(codec="int8")
    marks = sum(4 * (one.rows + len(one.scores)) + len(one.flags) for one in cache.layers)
    rows = sum(one.rows * 2 * (one.head_size + 2) for one in cache.layers)
    # one head of each layer sees no row beyond its horizon of 32
    dense = ((40 + 32 + 40) * 4 + (40 + 32) * 8) * 2 * 2
    share = fp16_bytes_kept(list(cache.layers), 40)
    assert share == pytest.approx((rows + marks) / dense)


def test_a_size_has_the_lowest_divergence_that_fits() -> None:
    found = {
        ("a", "int8"): (0.02, 0.2, 0.25),
        ("b", "int8"): (0.01, 0.3, 0.26),
        ("c", "int4"): (0.05, 0.2, 0.1),
    }
    assert best_at_sizes(found) == {"kl_at_bytes_25": 0.02, "kl_at_bytes_12": 0.05}
