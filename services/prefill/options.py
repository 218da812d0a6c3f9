"""Configuration of the prefill process."""

from __future__ import annotations

import dataclasses

from services.prefill.store.store_options import StoreOptions
from services.runtime.process.configuration import setting
from services.runtime.process.options import ModelOptions, ServerOptions
from services.runtime.process.serve_error import ServeError
from services.runtime.security.security_options import SecurityOptions

_LEAST_CHUNK_TOKENS = 16
_CHUNK_TOKENS = 1024
# with less, a layer of a chunk takes a GPU less time than the host takes to ask for it
_CHUNK_TOKENS_ON_CUDA = 8192


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
        0,
        "Tokens of a prefill chunk, at least 16; 0 takes 1,024, and 8,192 with --device cuda. With "
        "smaller chunks prefill takes less memory, and a cancelled prompt stops sooner.",
        minimum=0,
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


def chunk_tokens_for(chunk_tokens: int, device: str) -> int:
    """Return the tokens of a chunk on this device. Raises `ServeError` if they are too few."""
    if not chunk_tokens:
        return _CHUNK_TOKENS_ON_CUDA if device.startswith("cuda") else _CHUNK_TOKENS
    if chunk_tokens < _LEAST_CHUNK_TOKENS:
        raise ServeError(
            f"--chunk-tokens: {chunk_tokens} is less than {_LEAST_CHUNK_TOKENS}; "
            "0 takes the default"
        )
    return chunk_tokens
