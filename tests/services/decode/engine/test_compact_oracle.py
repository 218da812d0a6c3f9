"""Decoding on compact pages equals dense attention under masks, token by token and row by row."""

from __future__ import annotations

import asyncio
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from kvstore.pool import SequencePages
from services.runtime.model.served_model import ServedModel
from tests.services.decode.engine.engine_parts import (
    load_served,
    new_engine,
    new_pool,
    new_sequence,
    prefill,
    read,
)
from tests.services.decode.link.slow_decode import SlowDecoder

_PROMPT_TOKENS = 160
_TOKENS = 40

# small floors and windows, so that every clause has victims within so few tokens
_CASES = {
    "fastgen, the published rule": (
        "fastgen",
        {"recovery": 0.75, "floor_rows": 8, "keep_generated": False},
    ),
    "fastgen of the paper's sets": (
        "fastgen",
        {
            "recovery": 0.6,
            "floor_rows": 0,
            "sinks": 0,
            "frequent_ratio": 0.1,
            "local_ratio": 0.1,
            "keep_generated": False,
        },
    ),
    "fastgen, keeping what was generated": (
        "fastgen",
        {
            "recovery": 0.6,
            "floor_rows": 4,
            "frequent_ratio": 0.1,
            "local_ratio": 0.05,
            "keep_generated": True,
        },
    ),
    "coverage with a fixed budget": (
        "coverage",
        {"recovery": 0.6, "floor_rows": 8, "windows": [8, 16, 32], "grow": False},
    ),
    "coverage with a growing budget": (
        "coverage",
        {"recovery": 0.8, "floor_rows": 8, "windows": [8, 16], "grow": True},
    ),
}


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> ServedModel:
    return load_served(tiny_model)


def _positions(pages: SequencePages) -> list[list[set[int]]]:
    return [
        [set(head.positions.tolist()) for head in pages.heads(layer)]
        for layer in range(len(pages.shapes))
    ]


@pytest.mark.parametrize("case", _CASES)
async def test_compact_decoding_equals_masked_dense_attention(
    served: ServedModel, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, parameters = _CASES[case]
    prompt = served.tokenizer.encode(topics["compound"])[:_PROMPT_TOKENS]
    layers = prefill(served, prompt[:-1], policy, parameters)
    slow = SlowDecoder(served, layers)
    prompt_rows = [[set(head.scores) for head in heads] for heads in slow.heads]
    expected = slow.generate(prompt, _TOKENS)

    sequence = new_sequence(served, new_pool(served), prompt, layers, _TOKENS)
    assert _positions(sequence.pages) == prompt_rows
    kept: list[list[list[set[int]]]] = []
    release = sequence.pages.release
    monkeypatch.setattr(
        SequencePages, "release", lambda pages: (kept.append(_positions(pages)), release())
    )
    engine = new_engine(served, sequence.pages.pool)
    engine.submit(sequence)
    ended = await read(sequence)
    await asyncio.to_thread(engine.close)

    assert list(ended.tokens) == expected
    assert kept == [[[set(head.scores) for head in heads] for heads in slow.heads]]
    _require_a_test_worth_its_name(prompt_rows, kept[0])


@pytest.mark.parametrize("step_tokens", [1, 100, 1000])
@pytest.mark.parametrize("case", _CASES)
async def test_a_suffix_is_retained_in_chunks_of_256_tokens_however_it_is_fed(
    served: ServedModel, case: str, step_tokens: int
) -> None:
    """The suffix is fed in parts while other sequences decode; the answer is the same."""
    policy, parameters = _CASES[case]
    prompt = (served.tokenizer.encode(topics["compound"] + topics["with"]) * 4)[:560]
    if step_tokens == 1:
        # token by token a block takes as many steps: a short one is enough
        prompt = prompt[: _PROMPT_TOKENS + 30]
    suffix = len(prompt) - _PROMPT_TOKENS
    layers = prefill(served, prompt[:_PROMPT_TOKENS], policy, parameters)
    slow = SlowDecoder(served, layers)
    slow.prefill(prompt[:_PROMPT_TOKENS])
    expected = slow.answer(prompt[_PROMPT_TOKENS:], 12)

    pool = new_pool(served)
    beside = new_sequence(served, pool, [5, 6], prefill(served, [5], "full"), 500)
    sequence = new_sequence(served, pool, prompt, layers, 12, suffix_tokens=suffix)
    engine = new_engine(served, pool, step_tokens=step_tokens)
    engine.submit(beside)
    engine.submit(sequence)
    ended = await read(sequence)
    beside.cancel()
    await asyncio.to_thread(engine.close)
    assert list(ended.tokens) == expected


@pytest.mark.parametrize("case", _CASES)
async def test_three_turns_on_a_session_equal_masked_dense_attention(
    served: ServedModel, case: str
) -> None:
    """Each turn is fed to a fork, as the service does it, beside a sequence that decodes."""
    policy, parameters = _CASES[case]
    text = served.tokenizer.encode(topics["compound"] + topics["with"])
    prompt, turns = text[:_PROMPT_TOKENS], (text[300:341], text[400:402], text[500:790])
    layers = prefill(served, prompt[:-1], policy, parameters)
    slow = SlowDecoder(served, layers)
    slow.prefill(prompt[:-1])
    expected = [slow.answer(prompt[-1:], 10)]
    for turn in turns:
        expected.append(slow.answer([expected[-1][-1], *turn], 10))

    pool = new_pool(served)
    engine = new_engine(served, pool)
    engine.submit(beside := new_sequence(served, pool, [5, 6], prefill(served, [5], "full"), 2000))
    kept: list[SequencePages] = []
    sequence = new_sequence(served, pool, prompt, layers, 10)
    for number, answer in enumerate(expected):
        sequence._keep = lambda pages, _: (kept.append(pages), "a session")[1]
        engine.submit(sequence)
        assert list((await read(sequence)).tokens) == answer
        if number < len(turns):
            suffix = [answer[-1], *turns[number]]
            sequence = new_sequence(served, pool, suffix, (), 10, suffix_tokens=len(suffix))
            assert sequence.pages is not None
            sequence.pages.release()
            sequence.pages = kept[-1].fork()
    beside.cancel()
    await asyncio.to_thread(engine.close)
    for pages in kept:
        pages.release()
    assert pool.free_pages == pool.pages


def _require_a_test_worth_its_name(
    before: list[list[set[int]]], after: list[list[set[int]]]
) -> None:
    """Rows of the prompt and fed ones must have gone while decoding."""
    pairs = [
        (b, a) for bs, as_ in zip(before, after, strict=True) for b, a in zip(bs, as_, strict=True)
    ]
    assert any(b - a for b, a in pairs)
    fed = set(range(_PROMPT_TOKENS - 1, _PROMPT_TOKENS - 1 + _TOKENS))
    assert any(fed - a for _, a in pairs)
