"""A generation without gRPC: prefill in this process, pages of a poisoned pool, the engine."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from headwise import Delta, FinishReason
from kvstore.cache import RaggedLayer
from kvstore.policies import parse_policy
from kvstore.pool import PagePool, SequencePages, pages_bound
from services.decode.answer import Answer, EndRules
from services.decode.engine import Engine
from services.decode.report import Memory
from services.decode.sampling import Sampler, SamplingParameters
from services.decode.sequence import Finished, RunningSequence
from services.prefill.prefiller import Prefiller
from services.runtime.model import ServedModel, load_model


def load_served(folder: Path) -> ServedModel:
    torch.set_num_threads(2)
    return load_model(str(folder))


def prefill(
    served: ServedModel,
    token_ids: Sequence[int],
    policy: str,
    parameters: dict[str, object] | None = None,
    chunk_tokens: int = 1 << 20,
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
    ).run()
    return layers


def new_pool(served: ServedModel, pages: int = 4096, page_rows: int = 8) -> PagePool:
    """Rows nobody may read are NaN."""
    size = served.shapes[0].head_size
    return PagePool(pages, page_rows, size, served.dtype, poison=True)


def new_sequence(
    served: ServedModel,
    pool: PagePool,
    prompt: Sequence[int],
    layers: Sequence[RaggedLayer],
    max_tokens: int,
    sampling: SamplingParameters | None = None,
) -> RunningSequence:
    """What the handler of a request hands to the engine; `layers` hold all tokens but the last."""
    needed = pages_bound(served.shapes, len(prompt) + max_tokens, pool.page_rows)
    pages = SequencePages(pool.reserve(needed), served.shapes, len(prompt) - 1)
    for index, layer in enumerate(layers):
        pages.load(index, layer)
    return RunningSequence(
        pages=pages,
        next_token=prompt[-1],
        sampler=Sampler(sampling or SamplingParameters(), (), torch.device("cpu")),
        answer=Answer(EndRules(max_tokens, (), frozenset()), served.tokenizer.stream(prompt)),
        on_release=lambda: None,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """A whole answer."""

    tokens: tuple[int, ...]
    reason: FinishReason
    memory: Memory


async def read(sequence: RunningSequence) -> Ended:
    """Everything the engine tells of a sequence. Raises what it failed with."""
    tokens: tuple[int, ...] = ()
    while True:
        match await asyncio.wait_for(sequence.events.get(), 30):
            case Delta() as delta:
                tokens += delta.token_ids
            case Finished() as finished:
                return Ended(tokens, finished.reason, finished.memory)
            case error:
                raise error


async def run_alone(served: ServedModel, sequence: RunningSequence) -> Ended:
    """Run one sequence in an engine of its own."""
    engine = Engine(served)
    try:
        engine.submit(sequence)
        return await read(sequence)
    finally:
        await asyncio.to_thread(engine.close)
