"""Draws of tokens, compared with transformers' logits warpers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from services.decode.engine.token_draws import Draw, draw

_NUMBERS = 400
_PLAIN = Draw(1.0, 0, 1.0, 0.0, 0.0)


def _expected(scores: torch.Tensor, drawn: Draw) -> torch.Tensor:
    """Probabilities float64 `[V]` as `generate` has them."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(drawn.temperature)])
    if drawn.top_k:
        warpers.append(TopKLogitsWarper(drawn.top_k))
    if drawn.top_p < 1:
        warpers.append(TopPLogitsWarper(drawn.top_p))
    if drawn.min_p:
        warpers.append(MinPLogitsWarper(drawn.min_p))
    return warpers(torch.empty(1, 0, dtype=torch.long), scores[None]).double().softmax(-1)[0]


def _frequencies(scores: torch.Tensor, drawn: Draw, candidates: int) -> torch.Tensor:
    """Return the part of [0, 1) that draws each token: float64 `[V]`, within two steps."""
    draws = [drawn._replace(number=(n + 0.5) / _NUMBERS) for n in range(_NUMBERS)]
    tokens = draw(scores.expand(_NUMBERS, -1), draws, candidates)
    return tokens.bincount(minlength=scores.shape[-1]).double() / _NUMBERS


@given(
    size=st.integers(1, 60),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    drawn=st.builds(
        Draw,
        temperature=st.sampled_from([0.3, 1.0, 2.5]),
        top_k=st.sampled_from([0, 1, 3, 17, 60, 2**32 - 1]),
        top_p=st.sampled_from([1e-9, 0.2, 0.77, 0.95, 1 - 1e-7, 1.0]),
        min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
        number=st.just(0.0),
    ),
    candidates=st.sampled_from([1, 2, 5, 64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_token_has_its_share_of_numbers(
    size: int, spread: float, drawn: Draw, candidates: int, seed: int
) -> None:
    scores = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread
    expected = _expected(scores, drawn)
    found = _frequencies(scores, drawn, candidates)
    torch.testing.assert_close(found, expected, atol=2 / _NUMBERS, rtol=0)


@pytest.mark.parametrize("number", [0.0, 0.37, 1 - 2**-53])
@pytest.mark.parametrize("top_p", [0.5, 0.999])
def test_how_many_are_looked_at_first_does_not_show(top_p: float, number: float) -> None:
    """The result does not depend on the first count, for flat and for peaked vocabularies."""
    generator = torch.Generator().manual_seed(4)
    scores = torch.stack([torch.randn(20_000, generator=generator) * w for w in (0.2, 1, 6)])
    draws = [_PLAIN._replace(top_p=top_p, number=number)] * 3
    found = {count: draw(scores, draws, count).tolist() for count in (1, 256, 20_000)}
    assert found[1] == found[256] == found[20_000]


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("drawn", [_PLAIN, _PLAIN._replace(top_k=3)], ids=str)
def test_the_first_and_the_last_number_draw_what_can_be_drawn(drawn: Draw, number: float) -> None:
    minus = float("-inf")
    scores = torch.tensor([[minus, 2.0, minus, 1.0, minus]])
    assert int(draw(scores, [drawn._replace(number=number)])) in {1, 3}


def test_an_empty_batch_draws_nothing() -> None:
    assert draw(torch.empty(0, 5), []).shape == (0,)
