"""What the handlers of one decode process share."""

from __future__ import annotations

import dataclasses

from kvstore.pool import PagePool
from services.decode.admission import Admission
from services.decode.context_load import ContextLoader
from services.decode.contexts import Contexts
from services.decode.doorbell import Doorbell
from services.decode.engine import Engine
from services.decode.expectation import SizeExpectation
from services.decode.generation import GenerationLimits
from services.decode.intake import Intake
from services.decode.sessions import Sessions
from services.decode.source import PrefillSource
from services.runtime.model import ServedModel


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class DecodeParts:
    """Used on the event loop; the engine has a thread of its own."""

    served: ServedModel
    limits: GenerationLimits
    pool: PagePool
    source: PrefillSource
    engine: Engine
    admission: Admission
    intake: Intake
    sessions: Sessions
    contexts: Contexts
    loader: ContextLoader
    expectation: SizeExpectation
    doorbell: Doorbell
