"""Configuration of the decode process."""

from __future__ import annotations

import dataclasses

from services.decode.link.link_options import LinkOptions
from services.runtime.process.configuration import setting
from services.runtime.process.options import ModelOptions, ServerOptions
from services.runtime.process.trace_options import TraceOptions
from services.runtime.security.security_options import SecurityOptions


@dataclasses.dataclass(frozen=True, slots=True)
class DecodeOptions:
    """Everything `headwise decode` can be told."""

    model: ModelOptions
    server: ServerOptions
    security: SecurityOptions
    trace: TraceOptions
    link: LinkOptions
    port: int = setting(7080, "Port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    prefill: str = setting("127.0.0.1:7081", "Where the prefill service is, as host:port.")
    pool_bytes: int = setting(2 << 30, "Bytes of the page pool.", minimum=1 << 20)
    page_rows: int = setting(
        16, "Rows of one page; small pages leave less slack.", minimum=1, maximum=1024
    )
    max_sequences: int = setting(
        64, "Answers generated at once; further requests wait in line.", minimum=1
    )
    max_queued: int = setting(
        64,
        "Generations that may wait for room; one more is answered RESOURCE_EXHAUSTED.",
        minimum=0,
    )
    max_sessions: int = setting(
        256, "Sessions kept at once; the least recently used give way.", minimum=0
    )
    max_session_seconds: float = setting(
        3600.0, "Longest time a session is kept without use.", minimum=0
    )
    max_contexts: int = setting(
        64,
        "Stored caches held in the pool at once; the least recently used give way.",
        minimum=0,
    )
    max_sequence_tokens: int = setting(
        0, "Longest prompt and answer together; 0 means the model's context.", minimum=0
    )
    default_max_tokens: int = setting(256, "Answer length where a request names none.", minimum=1)
    step_tokens: int = setting(
        64,
        "Tokens of prompts and turns fed in a step while others wait for their next token; fewer "
        "make their tokens come more evenly.",
        minimum=1,
    )
    captured_steps: bool = setting(
        False,
        "Take steps of single tokens as one CUDA graph. Off, because it has not run on hardware "
        "yet.",
    )
    fused_layers: bool = setting(
        False,
        "With captured steps: fuse the small operations of the model's layers by torch.compile, "
        "which takes a minute or two at start. Off, because it has not run on hardware yet.",
    )
    retain_every: int = setting(
        1,
        "With captured steps: apply the rules after so many generated tokens. Looking for what may "
        "leave costs a look at every row; rows stay up to so many tokens longer.",
        minimum=1,
        maximum=64,
    )
    swap_bytes: int = setting(
        1 << 30, "Bytes of host memory for sequences that had to make room.", minimum=0
    )
    claim_seconds: float = setting(
        10.0, "Give an arriving cache up that has waited so long for room.", minimum=0.1
    )
    prefill_stall_seconds: float = setting(
        60.0, "Give a prefill up after this long without a sign of life.", minimum=0.1
    )
