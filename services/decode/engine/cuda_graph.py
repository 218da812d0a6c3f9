"""A whole decode step as one CUDA graph: forward, greedy choice, retention; a graph per size.

A step of few tokens is thousands of launches of a few microseconds, and the host takes longer to
ask for them than the device to run them. Captured once, they are replayed by one call. Where rules
look at several tokens together, the steps between are a graph of their own.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from kvstore.pool.graph_batch import GraphBatch
from kvstore.pool.uploads import Uploads
from services.decode.engine.step import BatchAttention
from services.runtime.model.forward_pass import forward
from services.runtime.model.fused_layers import fused_layers
from services.runtime.model.served_model import ServedModel


class CapturedStep:
    """Steps of up to `places` sequences of one codec, each fed the token that lies in `tokens`.

    `tokens` int64 `[places]` is what is fed next, and after a step the likeliest token of each;
    who chooses otherwise reads `logits` `[places, V]` and writes there before the next step. With
    `fused` the model's layers are captured as compiled. On a device other than CUDA the same
    operations run one by one.
    """

    def __init__(self, served: ServedModel, resident: GraphBatch, *, fused: bool = False) -> None:
        device = served.model.device
        self._served = served
        self._resident = resident
        self._hook = BatchAttention(resident)
        self._classes = served.tokenizer.classes.to(device)
        self._every = torch.arange(resident.places, device=device)
        # by whether the step ends a chunk, and whether rows are scored
        self._graphs: dict[tuple[bool, bool], torch.cuda.CUDAGraph] = {}
        self._uploads = Uploads(device)
        size = (resident.places, served.vocabulary_size)
        self.tokens = torch.zeros(resident.places, dtype=torch.int64, device=device)
        # what was chosen, and whether its logit is finite
        self.choices = torch.zeros(2, resident.places, dtype=torch.int64, device=device)
        self.logits = torch.zeros(size, dtype=served.dtype, device=device)
        if device.type == "cuda":
            with fused_layers(served.model) if fused else contextlib.nullcontext():
                for form in itertools.product({resident.ends_chunk, True}, (False, True)):
                    self._graphs[form] = self._captured(*form)

    @property
    def resident(self) -> GraphBatch:
        """The batch that is stepped."""
        return self._resident

    def run(self, tokens: Sequence[int] | None = None) -> None:
        """One step, of `tokens` by place or of what was chosen in the last; the host does not wait.

        Raises `PoolExhausted` before any change.
        """
        self._resident.preallocate_pages()
        if tokens is not None:
            given = self._uploads.copy(np.array(tokens, np.int64)).view(torch.int64)
            self.tokens[: len(tokens)].copy_(given)
        form = self._resident.ends_chunk, self._resident.scores
        if self._graphs:
            self._graphs[form].replay()
        else:
            with torch.inference_mode():
                self.step(*form)

    def logits_of(self, places: Sequence[int]) -> torch.Tensor:
        """Return the logits `[B, V]` of these places, valid until the next step."""
        if list(places) == list(range(len(places))):
            return self.logits[: len(places)]
        chosen = self._uploads.copy(np.array(places, np.int64)).view(torch.int64)
        return self.logits.index_select(0, chosen)

    def step(self, ends_chunk: bool, scored: bool) -> None:
        """Run the captured work, which uses constant addresses and does not wait for the host."""
        resident, batch = self._resident, self._resident.batch
        resident.begin(scored=scored)
        batch.flags.index_copy_(0, resident.staging_slots, self._classes[self.tokens])
        logits = forward(
            self._served,
            self.tokens[None],
            (batch.lengths + batch.before)[None],
            self._hook,
            logits=True,
            at=self._every,
        )
        assert logits is not None
        self.logits.copy_(logits)
        self.tokens.copy_(logits.argmax(-1))
        self.choices[0].copy_(self.tokens)
        self.choices[1].copy_(logits.gather(-1, self.tokens[:, None])[:, 0].isfinite())
        if ends_chunk:
            resident.retain()
        else:
            resident.advance_within_chunk()

    def _captured(self, ends_chunk: bool, scored: bool) -> torch.cuda.CUDAGraph:
        # no sequence has entered: stepping empty places changes no cache
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode():
            with torch.cuda.stream(stream):
                # kernels are compiled and libraries settle
                for _ in range(3):
                    self.step(ends_chunk, scored)
                    # no chunk has begun
                    self._resident.batch.before.zero_()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # other threads load caches meanwhile
            with (
                _without_collection(),
                torch.cuda.graph(graph, capture_error_mode="thread_local"),
            ):
                self.step(ends_chunk, scored)
        return graph


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Collect no garbage inside: a kernel that is collected is unloaded, which ends a capture."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
