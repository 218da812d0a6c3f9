"""Choosing a token for every sequence of a step, drawn within top-p as chats have it."""

from __future__ import annotations

import torch

from benchmarks.figures import Figure
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.timing import Timer
from services.decode.engine.sampling import Sampler, SamplingParameters, choose

_CHAT = SamplingParameters(temperature=0.7, top_p=0.95, seed=1)
# that far apart do logits of a language model lie
_SPREAD = 4.0


@torch.inference_mode()
def measure(sizes: Sizes, timer: Timer) -> Figures:
    """Measure the time from a step's logits until the host knows its tokens."""
    shape = (sizes.sequences, sizes.vocabulary)
    logits = torch.randn(shape, device=timer.device, dtype=sizes.dtype) * _SPREAD
    samplers = [Sampler(_CHAT.for_answer(n), ()) for n in range(sizes.sequences)]
    seconds = timer.seconds(lambda: choose(samplers, logits))
    against = f"temperature {_CHAT.temperature}, top-p {_CHAT.top_p}, between two steps"
    yield "choose_seconds", Figure(seconds, "seconds", against)
