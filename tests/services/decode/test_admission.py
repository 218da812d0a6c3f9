"""Room is reserved for the worst case, and who does not fit is told what to do."""

from __future__ import annotations

import pytest
import torch

from headwise import InvalidRequest, Overloaded
from headwise.v1.cache_pb2 import Policy
from kvstore.cache import LayerShape
from kvstore.errors import PoolExhausted
from kvstore.pool import PagePool
from services.decode.admission import Admission
from services.decode.answer import EndRules
from services.decode.generation import GenerationSpec
from services.decode.sampling import SamplingParameters

# three KV heads in all
_SHAPES = (LayerShape(1, 2, 4), LayerShape(2, 4, 4))


def _spec(prompt: int, max_tokens: int) -> GenerationSpec:
    ends = EndRules(max_tokens, (), frozenset())
    return GenerationSpec((5,) * prompt, Policy(), SamplingParameters(), ends, report_heads=False)


@pytest.fixture
def pool() -> PagePool:
    return PagePool(pages=30, page_rows=8, head_size=4, dtype=torch.float32)


def test_the_reservation_is_for_every_token_that_is_ever_fed(pool: PagePool) -> None:
    admission = Admission(pool, _SHAPES, max_sequences=9)
    # 9 + 8 − 1 tokens: two pages a head; one more token would take a third
    pages = admission.admit(_spec(9, 8))
    assert pool.reserved_pages == 3 * 2
    assert pages.length == 8
    admission.admit(_spec(9, 9))
    assert pool.reserved_pages == 3 * (2 + 3)
    assert admission.sequences == 2
    # keys and values of 4 float32, in 3 heads, of the 8 prompt tokens of each
    assert admission.dense_bytes == 2 * 8 * 3 * 2 * 4 * 4


def test_what_is_released_can_be_admitted_again(pool: PagePool) -> None:
    admission = Admission(pool, _SHAPES, max_sequences=1)
    for _ in range(3):
        pages = admission.admit(_spec(40, 40))
        pages.release()
        admission.leave(pages)
    assert (pool.free_pages, admission.sequences, admission.dense_bytes) == (30, 0, 0)


def test_too_many_sequences_are_told_to_come_again(pool: PagePool) -> None:
    admission = Admission(pool, _SHAPES, max_sequences=1)
    admission.admit(_spec(2, 2))
    with pytest.raises(Overloaded) as caught:
        admission.admit(_spec(2, 2))
    assert caught.value.reason == "TOO_MANY_SEQUENCES"
    assert caught.value.retry_after_seconds


def test_a_full_pool_reserves_nothing_more(pool: PagePool) -> None:
    admission = Admission(pool, _SHAPES, max_sequences=9)
    admission.admit(_spec(40, 40))
    with pytest.raises(PoolExhausted):
        admission.admit(_spec(2, 2))
    assert (pool.reserved_pages, admission.sequences) == (30, 1)


def test_what_never_fits_is_the_callers_fault(pool: PagePool) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Admission(pool, _SHAPES, max_sequences=9).admit(_spec(41, 41))
    assert (caught.value.reason, caught.value.field) == ("SEQUENCE_TOO_LONG", "max_tokens")
    assert pool.free_pages == 30
