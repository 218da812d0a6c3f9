"""Policies of every kind are served across two processes, and a budget means what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headwise import Client, Policy
from tests.conftest import Pair, running_pair
from tests.kvstore.policies.planning import SMALL

pytestmark = pytest.mark.processes

_PROMPT = "The with statement is used to wrap the execution of a block. " * 8
# of all queries' mass, of late queries themselves, of calibration alone, of a second pass over the
# whole cache, and rows that this fits; merged keys and values, that stay and that compete
_NAMES = (
    "coverage",
    "lookback",
    "qfilters",
    "reconstruction",
    "attention_matching",
    "kvmerger",
    "zeromerge",
)


@pytest.fixture(scope="module")
def pair(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A pair whose calibration artefacts end with the tests."""
    folder = str(tmp_path_factory.mktemp("models"))
    with running_pair(str(tiny_model), ("--model-cache", folder)) as pair:
        yield pair


@pytest.mark.parametrize("name", _NAMES)
def test_a_policy_is_served_and_keeps_its_retrieval_heads(pair: Pair, name: str) -> None:
    policy = Policy(name, {**SMALL[name], "retrieval_ratio": 0.25})
    with Client(pair[1].target) as client:
        generation = client.generate(
            _PROMPT, policy=policy, max_tokens=3, ignore_eos=True, report_heads=True
        )
        result = generation.result
    assert (result.policy, result.usage.completion_tokens) == (name, 3)
    cached = result.usage.prompt_tokens - 1
    whole = [head for head in result.heads if head.rows == cached]
    assert len(whole) == 1
    assert sum(head.rows for head in result.heads) == result.prompt_memory.rows_kept


def test_a_budget_in_bytes_bounds_what_is_shipped(pair: Pair) -> None:
    policy = Policy("snapkv", {"budget": "24 KiB", "window": 8, "floor_rows": 8})
    with Client(pair[1].target) as client:
        memory = client.generate(_PROMPT, policy=policy, max_tokens=1).result.prompt_memory
    # 2 x 16 float32 and a position a row
    assert 0.95 * (24 << 10) <= memory.rows_kept * 132 <= 24 << 10
