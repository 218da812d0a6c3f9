"""A generation without gRPC: prefill in this process, pages of a poisoned pool, the engine."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from headwise import Delta, FinishReason
from kvstore.cache import RaggedLayer
from kvstore.policies import parse_policy
from kvstore.pool import PageCount, PagePool, pages_bound
from kvstore.row_codecs import MODEL_ROWS, RowCodec
from services.decode.engine.answer import Answer, EndRules
from services.decode.engine.engine import Engine
from services.decode.engine.sampling import Sampler, SamplingParameters
from services.decode.engine.schedule import Scheduler
from services.decode.engine.sequence import Event, Finished, RunningSequence
from services.decode.memory.pool_shares import Evictable
from services.decode.report import Memory
from services.prefill.compute.prefiller import Prefiller
from services.runtime.model.served_model import ServedModel, load_model
from tests.services.decode.memory.arbiters import new_arbiter

if TYPE_CHECKING:
    from services.decode.engine.cuda_graphs import CapturedSteps


def load_served(folder: Path) -> ServedModel:
    torch.set_num_threads(2)
    return load_model(str(folder))


def prefill(
    served: ServedModel,
    token_ids: Sequence[int],
    policy: str,
    parameters: dict[str, object] | None = None,
    chunk_tokens: int = 1 << 20,
    codec: RowCodec = MODEL_ROWS,
) -> list[RaggedLayer]:
    """The layers of a prompt's cache."""
    layers: list[RaggedLayer] = []
    Prefiller(
        served,
        token_ids,
        parse_policy(policy, parameters or {}),
        chunk_tokens=chunk_tokens,
        emit=lambda _, layer: layers.append(layer),
        progress=lambda _: None,
        stop=threading.Event(),
        codec=codec,
    ).run()
    return layers


def new_pool(served: ServedModel, pages: int = 4096, page_rows: int = 8) -> PagePool:
    """Rows nobody may read are NaN."""
    return PagePool(
        served.shapes, pages=pages, page_rows=page_rows, dtype=served.dtype, poison=True
    )


def new_engine(
    served: ServedModel,
    pool: PagePool,
    *,
    step_tokens: int = 24,
    swap_bytes: int = 1 << 30,
    sessions: Evictable | None = None,
    captured: CapturedSteps | None = None,
) -> Engine:
    scheduler = Scheduler(max_sequences=64, ranges=4, step_tokens=step_tokens)
    arbiter = new_arbiter(pool, swap_bytes=swap_bytes, sessions=sessions)
    return Engine(served, pool, scheduler, arbiter, captured)


class Told:
    """Events of a sequence, read in the test's event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    def __call__(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class ToldSequence(RunningSequence):
    """A sequence whose events can be read, and which records that it was preempted."""

    def __init__(self, told: Told, **arguments: object) -> None:
        super().__init__(tell=told, **arguments)  # type: ignore[arg-type]
        self.events = told.events
        self.was_preempted = False

    def swap_out(self) -> None:
        self.was_preempted = True
        super().swap_out()


def new_sequence(
    served: ServedModel,
    pool: PagePool,
    prompt: Sequence[int],
    layers: Sequence[RaggedLayer],
    max_tokens: int,
    sampling: SamplingParameters | None = None,
    *,
    suffix_tokens: int = 1,
    promise: PageCount | None = None,
    forks: tuple[RunningSequence, ...] = (),
) -> ToldSequence:
    """Build a sequence as a request's handler does; `layers` hold all but the suffix."""
    needed = pages_bound(served.shapes, len(prompt) + max_tokens, pool.page_rows)
    pages = pool.open(len(prompt) - suffix_tokens, needed if promise is None else promise)
    for index, layer in enumerate(layers):
        pages.reservation.ensure(pages.need(layer))
        pages.load(index, layer)
    return ToldSequence(
        Told(),
        pages=pages,
        suffix=prompt[-suffix_tokens:],
        sampler=Sampler(sampling or SamplingParameters(), prompt),
        answer=Answer(EndRules(max_tokens, (), frozenset()), served.tokenizer.stream(prompt)),
        on_release=lambda: None,
        forks=forks,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """A whole answer."""

    tokens: tuple[int, ...]
    reason: FinishReason
    memory: Memory


async def read(sequence: ToldSequence) -> Ended:
    """Everything the engine tells of a sequence. Raises what it failed with."""
    tokens: tuple[int, ...] = ()
    while True:
        match await asyncio.wait_for(sequence.events.get(), 60):
            case Delta() as delta:
                tokens += delta.token_ids
            case Finished() as finished:
                return Ended(tokens, finished.reason, finished.memory)
            case error:
                raise error


async def run_alone(served: ServedModel, sequence: ToldSequence) -> Ended:
    """Run one sequence in an engine of its own."""
    assert sequence.pages is not None
    engine = new_engine(served, sequence.pages.pool)
    try:
        engine.submit(sequence)
        return await read(sequence)
    finally:
        await asyncio.to_thread(engine.close)
