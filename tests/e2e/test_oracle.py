"""Greedy tokens through both processes are exactly those of transformers' own `generate`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch

from headwise import AsyncClient, Policy
from services.runtime.model.served_model import _locate, default_cache_dir, load_tokenizer
from tests.conftest import Pair, running_pair

pytestmark = [pytest.mark.processes, pytest.mark.model, pytest.mark.timeout(900)]

_NEW_TOKENS = 128
_PROMPTS = {"exceptions": 200, "with": 600, "calls": 1200, "compound": 2000, "specialnames": 3000}
# a choice closer than this could fall either way by rounding alone: such a prompt proves nothing
_NEAR_TIE = 2e-4


@pytest.fixture(scope="module")
def prompts(smollm2: str) -> list[list[int]]:
    tokenizer = load_tokenizer(smollm2, cache_dir=default_cache_dir())
    encoded = [tokenizer.encode(topics[topic])[:length] for topic, length in _PROMPTS.items()]
    assert list(map(len, encoded)) == list(_PROMPTS.values())
    return encoded


@pytest.fixture(scope="module")
def expected(smollm2: str, prompts: list[list[int]]) -> list[list[int]]:
    """Return the greedy tokens of transformers with its own attention and cache."""
    from transformers import AutoModelForCausalLM

    folder = _locate(smollm2, "", default_cache_dir()).location
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    # never ends early, and no token is suppressed for it
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return [_generate(model, prompt) for prompt in prompts]


def _generate(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=_NEW_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
    best = torch.cat(found.logits).topk(2).values
    margin = float((best[:, 0] - best[:, 1]).min())
    print(f"{len(prompt)} tokens: closest choice {margin:.2g}")  # noqa: T201
    assert margin > _NEAR_TIE, f"{len(prompt)} tokens: a choice by {margin:.1g}, take another text"
    tokens: list[int] = found.sequences[0, len(prompt) :].tolist()
    return tokens


@pytest.fixture(scope="module")
def real_pair(smollm2: str, expected: list[list[int]]) -> Iterator[Pair]:
    # after the oracle, which would compete for the cores
    with running_pair(smollm2) as pair:
        yield pair


# FastGen at T = 1 is defined as full: profile and rules must not get in the way
_EXACT = (Policy("full"), Policy("fastgen", {"recovery": 1.0}))


async def test_exact_policies_give_the_tokens_of_generate(
    real_pair: Pair, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    async with AsyncClient(real_pair[1].target) as client:

        async def answer(prompt: list[int], policy: Policy) -> list[int]:
            deltas = client.generate(prompt, policy=policy, max_tokens=_NEW_TOKENS, ignore_eos=True)
            return [token async for delta in deltas for token in delta.token_ids]

        # together: the engine steps them as one batch of very different lengths
        asked = [answer(prompt, policy) for policy in _EXACT for prompt in prompts]
        found = await asyncio.gather(*asked)
    assert found == [*expected, *expected]
