"""Configuration of the decode process."""

from __future__ import annotations

import dataclasses

from services.runtime.configuration import setting
from services.runtime.options import ModelOptions, ServerOptions


@dataclasses.dataclass(frozen=True, slots=True)
class DecodeOptions:
    """Everything `headwise decode` can be told."""

    model: ModelOptions
    server: ServerOptions
    port: int = setting(7080, "Port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    prefill: str = setting("127.0.0.1:7081", "Where the prefill service is, as host:port.")
    pool_bytes: int = setting(2 << 30, "Bytes of the page pool.", minimum=1 << 20)
    page_rows: int = setting(
        16, "Rows of one page; small pages leave less slack.", minimum=1, maximum=1024
    )
    max_sequences: int = setting(
        64, "Generations at once; one more is answered RESOURCE_EXHAUSTED.", minimum=1
    )
    max_sequence_tokens: int = setting(
        0, "Longest prompt and answer together; 0 means the model's context.", minimum=0
    )
    default_max_tokens: int = setting(256, "Answer length where a request names none.", minimum=1)
    prefill_stall_seconds: float = setting(
        60.0, "Give a prefill up after this long without a sign of life.", minimum=0.1
    )
