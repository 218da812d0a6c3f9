"""Configuration of the prefill process."""

from __future__ import annotations

import dataclasses

from services.prefill.store.store_options import StoreOptions
from services.runtime.process.configuration import setting
from services.runtime.process.options import ModelOptions, ServerOptions
from services.runtime.process.trace_options import TraceOptions
from services.runtime.security.security_options import SecurityOptions


@dataclasses.dataclass(frozen=True, slots=True)
class PrefillOptions:
    """Everything `headwise prefill` can be told."""

    model: ModelOptions
    server: ServerOptions
    security: SecurityOptions
    trace: TraceOptions
    store: StoreOptions
    port: int = setting(7081, "Port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    default_policy: str = setting("balanced", "Policy of requests that name none.")
    chunk_tokens: int = setting(
        1024, "Prompt tokens computed at once; bounds memory and the time to stop.", minimum=16
    )
    max_prompt_tokens: int = setting(
        0, "Longest prompt served; 0 means the model's context.", minimum=0
    )
    max_queued_requests: int = setting(
        64, "Requests that may wait; one more is answered RESOURCE_EXHAUSTED.", minimum=0
    )
    outbox_bytes: int = setting(
        64 << 20, "Bytes of a cache that may wait for the receiver.", minimum=1 << 20
    )
