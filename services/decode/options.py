"""Configuration of the decode process."""

from __future__ import annotations

import dataclasses

from services.decode.link.link_options import LinkOptions
from services.runtime.process.configuration import setting
from services.runtime.process.options import ModelOptions, ServerOptions
from services.runtime.security.security_options import SecurityOptions

_PAGE_ROWS = 16
# attention's largest tile: a tile has at most the rows of a page, and on a GPU a smaller tile
# leaves too few bytes on their way to keep memory busy
_PAGE_ROWS_ON_CUDA = 64


@dataclasses.dataclass(frozen=True, slots=True)
class DecodeOptions:
    """Every option of `headwise decode`."""

    model: ModelOptions
    server: ServerOptions
    security: SecurityOptions
    link: LinkOptions
    port: int = setting(7080, "Port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    prefill: str = setting("127.0.0.1:7081", "Address of the prefill service, as HOST:PORT.")
    pool_bytes: int = setting(2 << 30, "Bytes of the page pool.", minimum=1 << 20)
    page_rows: int = setting(
        0,
        "Rows of one page; 0 takes 16, and 64 with --device cuda and a dtype of 16 bits. A smaller "
        "page leaves fewer bytes unused.",
        minimum=0,
        maximum=1024,
    )
    max_sequences: int = setting(
        64, "Most sequences in the batch; further requests wait in the queue.", minimum=1
    )
    max_queued: int = setting(
        64,
        "Most requests in the queue; a further request is answered RESOURCE_EXHAUSTED.",
        minimum=0,
    )
    max_sessions: int = setting(
        256, "Most sessions at once; the least recently used is evicted first.", minimum=0
    )
    max_session_ttl_seconds: float = setting(
        3600.0, "Longest TTL of a session, in seconds.", minimum=0
    )
    max_resident_caches: int = setting(
        64,
        "Most resident caches in the pool at once; the least recently used is evicted first.",
        minimum=0,
    )
    max_sequence_tokens: int = setting(
        0,
        "Longest prompt and answer together, in tokens; 0 allows the model's whole context.",
        minimum=0,
    )
    default_max_tokens: int = setting(
        256, "Longest answer in tokens where a request names no limit.", minimum=1
    )
    step_tokens: int = setting(
        64,
        "Most tokens of prompts and turns in one step while other sequences generate. A smaller "
        "number makes the steps of those sequences more even.",
        minimum=1,
    )
    cuda_graphs: str = setting(
        "off",
        "CUDA graphs for steps in which each sequence adds one token: off, on, or compiled (the "
        "layers by torch.compile too, which takes a minute or two at start). on and compiled are "
        "experimental: they have not run on hardware.",
        choices=("off", "on", "compiled"),
    )
    swap_bytes: int = setting(1 << 30, "Bytes of host memory for preempted sequences.", minimum=0)
    reservation_timeout_seconds: float = setting(
        10.0,
        "Seconds that an arriving cache waits for a reservation of pages; then its request fails.",
        minimum=0.1,
    )
    prefill_stall_seconds: float = setting(
        60.0,
        "Seconds that a request waits while prefill sends nothing; then the request fails.",
        minimum=0.1,
    )
    # generated tokens between two applications of the rules under a CUDA graph; rows stay up to so
    # many tokens longer. An option of an earlier release alone sets it
    retain_every: int = 1


def page_rows_for(page_rows: int, model: ModelOptions) -> int:
    """Return the rows of a page for this model and device, where the option leaves them open."""
    if page_rows:
        return page_rows
    in_16_bits = model.dtype in ("bfloat16", "float16")
    return _PAGE_ROWS_ON_CUDA if model.device.startswith("cuda") and in_16_bits else _PAGE_ROWS
