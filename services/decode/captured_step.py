"""A whole decode step as one CUDA graph: forward, greedy choice, retention; a graph per size.

A step of few tokens is thousands of launches of a few microseconds, and the host takes longer to
ask for them than the device to run them. Captured once, they are replayed by one call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvstore.pool.resident import ResidentBatch
from services.decode.step import BatchAttention
from services.runtime.attention import forward
from services.runtime.model import ServedModel


class CapturedStep:
    """Steps of up to `places` sequences of one codec, each fed the token that lies in `tokens`.

    `tokens` int64 `[places]` is what is fed next, and after a step the likeliest token of each;
    who chooses otherwise reads `logits` `[places, V]` and writes there before the next step. On
    a device other than CUDA the same operations run one by one.
    """

    def __init__(self, served: ServedModel, resident: ResidentBatch) -> None:
        device = served.model.device
        self._served = served
        self._resident = resident
        self._hook = BatchAttention(resident)
        self._classes = served.tokenizer.classes.to(device)
        self._every = torch.arange(resident.places, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        size = (resident.places, served.vocabulary_size)
        self.tokens = torch.zeros(resident.places, dtype=torch.int64, device=device)
        self.logits = torch.zeros(size, dtype=served.dtype, device=device)
        if device.type == "cuda":
            self._capture()

    @property
    def resident(self) -> ResidentBatch:
        """The batch that is stepped."""
        return self._resident

    def run(self, tokens: Sequence[int] | None = None) -> None:
        """One step, of `tokens` or of what was chosen in the last; the host does not wait.

        Raises `PoolExhausted` before any change.
        """
        self._resident.lend()
        if tokens is not None:
            self.tokens[: len(tokens)].copy_(torch.tensor(tokens))
        if self._graph is None:
            with torch.inference_mode():
                self.step()
        else:
            self._graph.replay()

    def step(self) -> None:
        """What is captured: reads and writes the same addresses each time, and asks no host."""
        resident, batch = self._resident, self._resident.batch
        batch.flags.copy_(self._classes[self.tokens])
        resident.begin()
        logits = forward(
            self._served,
            self.tokens[None],
            batch.lengths[None],
            self._hook,
            logits=True,
            at=self._every,
        )
        assert logits is not None
        self.logits.copy_(logits)
        self.tokens.copy_(logits.argmax(-1))
        resident.retain()

    def _capture(self) -> None:
        # nobody has entered: places that hold nothing can be stepped without a trace
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode():
            with torch.cuda.stream(stream):
                # kernels are compiled and libraries settle
                for _ in range(3):
                    self.step()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # other threads load caches meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.step()
        self._graph = graph
