"""A model with sliding layers: the policy that drops nothing saves nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from headwise import Client
from kvstore.policies import parse_policy
from services.evaluation.prompt_record import (
    PromptRecord,
    bytes_kept,
    fp16_bytes_kept,
    rows_kept,
)
from services.runtime.model.served_model import load_model
from tests.conftest import Pair, running_pair
from tests.observe import scrape

pytestmark = pytest.mark.processes

_WINDOW, _TOKENS, _HEADS, _LAYERS, _SLIDING = 16, 90, 2, 4, 3
_DENSE_ROWS = _HEADS * (_SLIDING * _WINDOW + (_LAYERS - _SLIDING) * _TOKENS)
_ROW_BYTES = 2 * 8 * 4
_PROMPT = [(7 * i * i + 3 * i) % 500 + 2 for i in range(_TOKENS + 1)]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A tiny Gemma 3 with three sliding layers and one that sees everything."""
    folder = tmp_path_factory.mktemp("gemma")
    torch.manual_seed(2)
    kinds = ["sliding_attention"] * _SLIDING + ["full_attention"]
    config = Gemma3TextConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=_HEADS,
        head_dim=8,
        sliding_window=_WINDOW,
        layer_types=kinds,
        max_position_embeddings=512,
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / file, folder)
    return folder


@pytest.fixture(scope="module")
def pair(gemma: Path) -> Iterator[Pair]:
    with running_pair(str(gemma)) as pair:
        yield pair


def test_full_keeps_all_rows_in_results_sessions_and_metrics(pair: Pair) -> None:
    with Client(pair[1].target) as client:
        generation = client.generate(
            _PROMPT, policy="full", max_tokens=1, session_ttl_seconds=60, ignore_eos=True
        )
        memory = generation.result.prompt_memory
        assert memory.rows_kept == memory.rows_dense == _DENSE_ROWS
        assert memory.dense_bytes == _DENSE_ROWS * _ROW_BYTES
        told = scrape(pair[1].metrics_url)
        rows = [told[name] for name in told if name.startswith("headwise_rows_received_total")]
        dense = [
            told[name] for name in told if name.startswith("headwise_dense_rows_received_total")
        ]
        assert sum(rows) == sum(dense) == _DENSE_ROWS
        assert told["headwise_wire_dense_equivalent_bytes_total"] == _DENSE_ROWS * _ROW_BYTES
        # with the last token of the prompt, which decode has fed
        held = memory.dense_bytes + _HEADS * (_LAYERS - _SLIDING) * _ROW_BYTES
        session = client.sessions.describe(generation.result.session_id)
        assert session.memory.dense_bytes == held
        assert told["headwise_kv_dense_equivalent_bytes"] == held


def test_full_keeps_all_rows_in_eval(gemma: Path) -> None:
    record = PromptRecord(load_model(str(gemma)), tuple(_PROMPT[:-1]))
    layers = record.compact(parse_policy("full", {}))
    assert rows_kept(layers, _TOKENS) == 1.0
    # positions lie beside keys and values
    assert 1.0 < bytes_kept(layers, _TOKENS) < 1.1
    assert 1.0 < fp16_bytes_kept(layers, _TOKENS) < 1.2
