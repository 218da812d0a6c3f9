"""Steps of the engine itself: choosing, telling and lending included, which graphs alone hide."""

from __future__ import annotations

import itertools
import queue
import statistics
import time
from collections.abc import Sequence

import torch

from benchmarks.figures import Figure
from benchmarks.gpu.decode_step import filled_pool, random_model
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.retain import RETENTION_CHUNK_TOKENS
from benchmarks.gpu.sizes import Sizes
from kvstore.pool import PagePool, SequencePages
from kvstore.row_codecs import ElementCodec
from services.decode.engine.answer import Answer, EndRules
from services.decode.engine.cuda_graphs import CapturedSteps
from services.decode.engine.engine import Engine
from services.decode.engine.sampling import Sampler, SamplingParameters
from services.decode.engine.schedule import Scheduler
from services.decode.engine.sequence import Event, Finished, RunningSequence
from services.decode.memory.arbiter import MemoryArbiter, MemoryLimits
from services.decode.memory.freed_pages import FreedPages
from services.runtime.model.served_model import ServedModel
from services.runtime.model.text_stream import TextStream

_CHAT = SamplingParameters(temperature=0.7, top_p=0.95, seed=1)
# steps are steady after some blocks of retention
_SKIPPED_BLOCKS, _MEASURED_BLOCKS = 2, 8
# an engine that waits longer is stuck
_PATIENCE_SECONDS = 60.0


@torch.inference_mode()
def measure(sizes: Sizes, device: torch.device) -> Figures:
    """Measure the time between two tokens of one sequence while all places run."""
    served = random_model(sizes, device)
    pool, sequences = filled_pool(served, sizes, device)
    skipped, measured = (min(n, sizes.repeats) for n in (_SKIPPED_BLOCKS, _MEASURED_BLOCKS))
    captured = CapturedSteps(served, pool, sizes.sequences, RETENTION_CHUNK_TOKENS)
    captured.prepare([ElementCodec.MODEL])
    scheduler = Scheduler(max_sequences=sizes.sequences, ranges=1, step_tokens=1)
    engine = Engine(served, pool, scheduler, _arbiter(pool, sizes.sequences), captured)
    try:
        gaps = _gaps(engine, served, sequences, skipped + measured)
    finally:
        engine.close()
    blocks = [
        sum(gaps[n : n + RETENTION_CHUNK_TOKENS])
        for n in range(0, len(gaps), RETENTION_CHUNK_TOKENS)
    ]
    seconds = statistics.median(blocks[skipped:]) / RETENTION_CHUNK_TOKENS
    against = f"a token of each of {sizes.sequences} sequences, as clients see it"
    yield "engine_step_seconds", Figure(seconds, "seconds", against)


def _gaps(
    engine: Engine, served: ServedModel, sequences: Sequence[SequencePages], blocks: int
) -> list[float]:
    """Return the seconds between the first sequence's tokens; all run for so many blocks."""
    told: queue.SimpleQueue[tuple[float, Event]] = queue.SimpleQueue()
    tokens = blocks * RETENTION_CHUNK_TOKENS + 1
    for number, pages in enumerate(sequences):
        engine.submit(_running(served, pages, number, tokens, told))
    times = []
    while len(times) < tokens:
        at, event = told.get(timeout=_PATIENCE_SECONDS)
        if isinstance(event, Exception):
            raise event
        if not isinstance(event, Finished):
            times.append(at)
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def _running(
    served: ServedModel,
    pages: SequencePages,
    number: int,
    tokens: int,
    told: queue.SimpleQueue[tuple[float, Event]],
) -> RunningSequence:
    def tell(event: Event) -> None:
        if number == 0 or isinstance(event, Exception):
            told.put((time.perf_counter(), event))

    return RunningSequence(
        pages=pages,
        suffix=[number % served.vocabulary_size],
        sampler=Sampler(_CHAT.for_answer(number), ()),
        answer=Answer(EndRules(tokens, (), frozenset()), TextStream(lambda ids: "." * len(ids))),
        tell=tell,
        on_release=lambda: None,
    )


class _NothingIdle:
    def evict(self) -> bool:
        return False


def _arbiter(pool: PagePool, sequences: int) -> MemoryArbiter[RunningSequence]:
    idle = _NothingIdle()
    limits = MemoryLimits(
        max_sequences=sequences,
        max_queued=sequences,
        reservation_timeout_seconds=_PATIENCE_SECONDS,
        swap_bytes=1 << 30,
    )
    return MemoryArbiter(pool, idle, idle, FreedPages(lambda handler: None), limits)
