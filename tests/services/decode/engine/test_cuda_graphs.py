"""The engine gives the same answers with CUDA graphs as without."""

from __future__ import annotations

import asyncio
import functools
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import torch

from headwise import Unavailable
from kvstore.pool import PageCount, PagePool, SequencePages
from kvstore.row_codecs import MODEL_ROWS, ElementCodec, RowCodec
from services.decode import process
from services.decode.engine.sampling import SamplingParameters
from services.runtime.model.served_model import ServedModel, load_model
from services.runtime.process.serve_error import ServeError
from tests.services.decode.engine.engine_parts import (
    ToldSequence,
    new_engine,
    new_sequence,
    prefill,
    read,
    run_alone,
)

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources, PTXASError

from kvstore.kernels.coded_rows import INT8
from kvstore.kernels.ragged_attention import kernel
from kvstore.kernels.ragged_attention.arguments import AttentionForm
from kvstore.kernels.ragged_attention.attend_slice import attend_slice
from services.decode.engine.cuda_graph import CapturedStep
from services.decode.engine.cuda_graphs import CapturedSteps

pytestmark = pytest.mark.usefixtures("sanitized")

_TOKENS = 5
_COVERAGE = {"recovery": 0.6, "floor_rows": 8, "windows": [8], "grow": False}


class Counted(CapturedSteps):
    """Knows how many steps were begun, and how many of these before the last was read."""

    taken = 0
    ahead = 0

    def begin_next(self, sequences: Sequence[SequencePages]) -> bool:
        begun = super().begin_next(sequences)
        self.ahead += begun
        return begun

    def _launched(self, step: CapturedStep) -> None:
        super()._launched(step)
        self.taken += 1


@pytest.fixture(scope="module")
def served(tiny_model: Path, any_device: str) -> ServedModel:
    torch.set_num_threads(2)
    return load_model(str(tiny_model), device=any_device)


def a_pool(served: ServedModel, pages: int = 600) -> PagePool:
    return PagePool(
        served.shapes,
        pages=pages,
        page_rows=8,
        dtype=served.dtype,
        device=served.model.device,
        poison=True,
    )


def a_sequence(
    served: ServedModel,
    pool: PagePool,
    length: int,
    max_tokens: int = _TOKENS,
    *,
    suffix_tokens: int = 1,
    temperature: float = 0.0,
) -> ToldSequence:
    prompt = [(7 * i * i + length) % served.vocabulary_size for i in range(length)]
    layers = prefill(served, prompt[:-suffix_tokens], "coverage", _COVERAGE)
    sampling = SamplingParameters(temperature=temperature, seed=3)
    return new_sequence(
        served, pool, prompt, layers, max_tokens, sampling, suffix_tokens=suffix_tokens
    )


# short and long suffixes, greedy and not, and ends at different times
_PARTS = (
    {"length": 20, "max_tokens": 2},
    {"length": 33, "temperature": 0.9},
    {"length": 26, "suffix_tokens": 4},
)


async def _run_together(served: ServedModel, parts: Sequence[dict[str, Any]]) -> Counted:
    """Require that sequences answer together as alone and leave no page; return the graphs."""
    pool = a_pool(served)
    alone = [await run_alone(served, a_sequence(served, pool, **part)) for part in parts]
    captured = Counted(served, pool, 3)
    engine = new_engine(served, pool, captured=captured)
    try:
        together = [a_sequence(served, pool, **part) for part in parts]
        for sequence in together:
            engine.submit(sequence)
        ended = await asyncio.gather(*map(read, together))
    finally:
        await asyncio.to_thread(engine.close)
    assert [e.tokens for e in ended] == [a.tokens for a in alone]
    assert [e.memory for e in ended] == [a.memory for a in alone]
    assert (pool.used_pages, pool.used_metadata_pages, pool.reserved_pages) == (0, 0, 0)
    return captured


@pytest.mark.parametrize("any_device", ["", "gpu"], indirect=True)
async def test_answers_are_the_same(served: ServedModel) -> None:
    assert (await _run_together(served, _PARTS)).taken >= 3


# all greedy, and ending after different numbers of tokens
_GREEDY = (
    {"length": 20, "max_tokens": 3},
    {"length": 33, "max_tokens": 6},
    {"length": 27, "max_tokens": 6},
)


@pytest.mark.parametrize("any_device", ["", "gpu"], indirect=True)
async def test_steps_that_begin_before_the_last_is_told_change_no_answer(
    served: ServedModel,
) -> None:
    assert (await _run_together(served, _GREEDY)).ahead >= 3


async def test_a_cancelled_sequence_leaves_a_running_graph_batch(served: ServedModel) -> None:
    """Cancelled in the middle of a batch that goes on; its pages go back."""
    pool = a_pool(served)
    alone = await run_alone(served, a_sequence(served, pool, 33))
    engine = new_engine(served, pool, captured=Counted(served, pool, 2))
    try:
        stays, leaves = a_sequence(served, pool, 33), a_sequence(served, pool, 20, 400)
        engine.submit(stays)
        engine.submit(leaves)
        await leaves.events.get()
        leaves.cancel()
        assert (await read(stays)).tokens == alone.tokens
    finally:
        await asyncio.to_thread(engine.close)
    assert (pool.used_pages, pool.reserved_pages) == (0, 0)


@pytest.mark.parametrize("chunk", [1, 3])
async def test_closing_in_the_middle_gives_every_page_back(served: ServedModel, chunk: int) -> None:
    pool = a_pool(served)
    captured = Counted(served, pool, 2, chunk)
    captured.prepare((ElementCodec.MODEL,))
    prepared = dict(captured._steps)
    engine = new_engine(served, pool, captured=captured)
    sequence = a_sequence(served, pool, 20, 400)
    engine.submit(sequence)
    for _ in range(2):
        await sequence.events.get()
    await asyncio.to_thread(engine.close)
    with pytest.raises(Unavailable, match="shutting down"):
        await read(sequence)
    assert captured.taken
    assert captured._steps == prepared
    assert (pool.used_pages, pool.used_metadata_pages, pool.reserved_pages) == (0, 0, 0)


def test_larger_batches_and_other_marks_are_left_to_the_other_way(served: ServedModel) -> None:
    pool = a_pool(served)
    sequences = [_opened(served, pool) for _ in range(3)]
    captured = CapturedSteps(served, pool, 2)
    assert captured.run(sequences, [0, 0, 0], lambda *_: True) is None
    first = captured._entered(tuple(sequences[:2]))
    assert first is not None
    assert captured._entered(tuple(sequences[:2])) is first
    # where log-weights come to lie elsewhere, addresses change
    pool.storage.keep_log_weights()
    second = captured._entered(tuple(sequences[:1]))
    assert second is not None
    assert second is not first
    assert not first.resident.sequences
    for sequence in sequences:
        sequence.release()
    assert not second.resident.sequences


class FailsOnInt8:
    """The attention kernel, which raises an error instead of reading keys in int8."""

    def __init__(self, error: Exception) -> None:
        self.attempts = 0
        self._error = error

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        def launch(*arguments: object, **options: Any) -> None:
            form: AttentionForm = options["FORM"]
            if form.pages.key_rows.codec == INT8:
                self.attempts += 1
                raise self._error
            attend_slice[grid](*arguments, **options)

        return launch


@pytest.mark.skipif(torch.cuda.is_available(), reason="a real one has the kernel itself")
@pytest.mark.parametrize("any_device", ["gpu"], indirect=True)
@pytest.mark.parametrize(
    "error",
    [OutOfResources(300_000, 232_448, "shared memory"), PTXASError("no"), RuntimeError("CUDA")],
)
def test_a_graph_that_cannot_be_captured_costs_no_other(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Steps of that codec run in the other way; the failure is counted, and not tried again."""
    pool, int8 = a_pool(served), RowCodec.parse("int8")
    sequences = {codec: _opened(served, pool, codec) for codec in (MODEL_ROWS, int8)}
    failing = FailsOnInt8(error)
    monkeypatch.setattr(kernel, "attend_slice", failing)
    captured = CapturedSteps(served, pool, 2)
    failures = functools.partial(
        prometheus_client.REGISTRY.get_sample_value,
        "headwise_cuda_graph_captures_failed_total",
        {"codec": "int8"},
    )
    before = failures() or 0
    captured.prepare((ElementCodec.MODEL, ElementCodec.INT8))
    for codec, is_captured in ((int8, False), (MODEL_ROWS, True), (int8, False)):
        logits = captured.run([sequences[codec]], [0], lambda *_: True)
        assert (logits is not None) == is_captured
    assert failing.attempts == 1
    assert failures() == before + 1
    for sequence in sequences.values():
        sequence.release()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_cuda_graphs_without_a_gpu_are_refused(served: ServedModel) -> None:
    options = types.SimpleNamespace(cuda_graphs="on", max_sequences=3, retain_every=1)
    with pytest.raises(ServeError, match="--cuda-graphs needs a CUDA device"):
        process._captured(served, a_pool(served), options)  # type: ignore[arg-type]


def _opened(served: ServedModel, pool: PagePool, codec: RowCodec = MODEL_ROWS) -> SequencePages:
    sequence = pool.open(12, codec=codec)
    for index, layer in enumerate(prefill(served, range(3, 15), "full", codec=codec)):
        sequence.reservation.ensure(sequence.need(layer))
        sequence.load(index, layer)
    # what a step may need
    sequence.reservation.ensure(PageCount(8, 8))
    return sequence
