"""Dense counts are those of a cache that drops nothing of this model, as transformers has it."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, PretrainedConfig, StaticCache

from kvstore.cache import CompactCache, Fingerprint, HeadRows, ModelFingerprint, RaggedLayer
from kvstore.pool import PagePool
from kvstore.rules import RetentionRule
from services.runtime.model.allow_list import layer_shapes

_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
_CONFIGS = {
    "llama": LlamaConfig(**_SIZES, num_hidden_layers=3),
    "mistral": MistralConfig(**_SIZES, num_hidden_layers=3, sliding_window=16),
    # five sliding layers for each one that sees everything
    "gemma3": Gemma3TextConfig(**_SIZES, num_hidden_layers=7, sliding_window=16),
}


def _rows_of_transformers(config: PretrainedConfig, tokens: int) -> int:
    """Rows of all KV heads in the cache that transformers allocates for so many tokens."""
    cache = StaticCache(config=config, max_cache_len=tokens)
    rows = torch.zeros(1, config.num_key_value_heads, 1, config.head_dim)
    return sum(
        config.num_key_value_heads * cache.update(rows, rows, layer)[0].shape[2]
        for layer in range(config.num_hidden_layers)
    )


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 90])
@pytest.mark.parametrize("name", _CONFIGS)
def test_dense_rows_are_those_that_transformers_holds(name: str, tokens: int) -> None:
    config = _CONFIGS[name]
    shapes = layer_shapes(config)
    expected = _rows_of_transformers(config, tokens)
    assert sum(shape.dense_rows(tokens) for shape in shapes) == expected
    pool = PagePool(shapes, pages=64, page_rows=4, dtype=torch.float32, sequences=2)
    first, second = (pool.open(tokens) for _ in range(2))
    assert first.dense_rows == expected
    assert first.dense_bytes == expected * 2 * 8 * 4
    assert pool.dense_bytes == 2 * first.dense_bytes
    first.release()
    second.release()
    assert pool.dense_bytes == 0


def _whole(name: str, tokens: int) -> CompactCache:
    """A cache that has dropped what no later token could read, and nothing else."""
    layers = []
    for shape in layer_shapes(_CONFIGS[name]):
        held = shape.dense_rows(tokens) // shape.kv_heads
        rule = RetentionRule(full=True, horizon=shape.sliding_window or 0)
        rows = torch.zeros(held, 8)
        positions = torch.arange(tokens - held, tokens, dtype=torch.int32)
        layers.append(
            RaggedLayer.of_heads([HeadRows(rule, rows, rows, positions)] * shape.kv_heads)
        )
    model = ModelFingerprint("m", "", "a" * 64, "b" * 64, "float32")
    return CompactCache(Fingerprint(model, "c" * 64, "full", "{}"), tuple(layers), tokens)


@pytest.mark.parametrize("tokens", [5, 90])
@pytest.mark.parametrize("name", _CONFIGS)
def test_a_cache_that_drops_nothing_is_all_of_the_dense_one(name: str, tokens: int) -> None:
    cache = _whole(name, tokens)
    assert cache.rows_kept_ratio == 1.0
    assert cache.dense_nbytes == _rows_of_transformers(_CONFIGS[name], tokens) * 2 * 8 * 4
