"""The objects that the handlers of one decode process share."""

from __future__ import annotations

import dataclasses

from kvstore.pool import PagePool
from services.decode.arriving_caches import ArrivingCaches
from services.decode.engine.engine import Engine
from services.decode.engine.loop_calls import LoopCalls
from services.decode.engine.sequence import RunningSequence
from services.decode.generation import GenerationLimits
from services.decode.link.prefill_source import PrefillSource
from services.decode.memory.arbiter import MemoryArbiter
from services.decode.memory.intake import Intake
from services.decode.memory.resident_caches import ResidentCaches
from services.decode.memory.sessions import Sessions
from services.decode.memory.size_expectation import SizeExpectation
from services.runtime.model.served_model import ServedModel


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class DecodeParts:
    """The composition of one process, made in `process` and used on the event loop."""

    served: ServedModel
    limits: GenerationLimits
    pool: PagePool
    source: PrefillSource
    engine: Engine
    arbiter: MemoryArbiter[RunningSequence]
    intake: Intake
    sessions: Sessions
    resident_caches: ResidentCaches
    arrivals: ArrivingCaches
    expectation: SizeExpectation
    loop_calls: LoopCalls
