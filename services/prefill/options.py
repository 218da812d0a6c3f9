"""Configuration of the prefill process."""

from __future__ import annotations

import dataclasses

from services.prefill.store.store_options import StoreOptions
from services.runtime.process.configuration import setting
from services.runtime.process.options import ModelOptions, ServerOptions
from services.runtime.security.security_options import SecurityOptions


@dataclasses.dataclass(frozen=True, slots=True)
class PrefillOptions:
    """Every option of `headwise prefill`."""

    model: ModelOptions
    server: ServerOptions
    security: SecurityOptions
    store: StoreOptions
    port: int = setting(7081, "Port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    default_policy: str = setting("balanced", "Policy of requests that name none.")
    chunk_tokens: int = setting(
        1024,
        "Tokens of a prefill chunk. With smaller chunks prefill takes less memory, and a cancelled "
        "prompt stops sooner.",
        minimum=16,
    )
    max_prompt_tokens: int = setting(
        0, "Longest prompt in tokens; 0 allows the model's whole context.", minimum=0
    )
    max_queued: int = setting(
        64,
        "Most requests in the queue; a further request is answered RESOURCE_EXHAUSTED.",
        minimum=0,
    )
    send_buffer_bytes: int = setting(
        1 << 30,
        "Bytes of computed caches that wait for their readers; above them the tenant with most of "
        "them waits before its next prompt.",
        minimum=1 << 20,
    )
