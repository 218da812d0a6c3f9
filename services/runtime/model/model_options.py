"""Options of the model: the allowed codecs, and loading the model that the options name."""

from __future__ import annotations

import logging
import time

import torch
import transformers.utils.logging

from headwise.version import __version__
from kvstore.row_codecs import ElementCodec, RowCodec
from services.runtime.model.served_model import ServedModel, load_model
from services.runtime.process import metrics
from services.runtime.process.logs import progress_bars_fit
from services.runtime.process.options import ModelOptions

log = logging.getLogger("headwise.model")


def allowed_codecs(spelling: str) -> tuple[ElementCodec, ...]:
    """Return the codecs of the comma-separated option `--codecs`. Raises `InvalidParameter`."""
    named = {RowCodec.parse(name.strip()).keys for name in spelling.split(",") if name.strip()}
    return tuple(c for c in ElementCodec if c in named or c is ElementCodec.MODEL)


def load_served_model(options: ModelOptions) -> ServedModel:
    """Load the model and log its size. Raises what `load_model` raises."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if not progress_bars_fit():
        # those of the hub's client too
        transformers.utils.logging.disable_progress_bar()
    began = time.perf_counter()
    served = load_model(
        options.model,
        dtype=options.dtype,
        device=options.device,
        revision=options.revision,
        cache_dir=options.model_cache.expanduser(),
    )
    served.tokenizer.refuses_control_tokens = options.control_tokens == "refuse"
    identity = served.fingerprint.model_id, options.dtype, options.device, __version__
    metrics.MODEL.labels(*identity).set(1)
    seconds = time.perf_counter() - began
    log.info(
        "%s ready in %.1f s: %d layers, context %d tokens, weights %s",
        served.fingerprint.model_id,
        seconds,
        len(served.shapes),
        served.context_tokens,
        served.fingerprint.weights_digest[:12],
    )
    return served
