"""Computes one prompt and emits each layer, compacted, as soon as it is complete."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch

from kvstore.attention_input import AttentionInput
from kvstore.cache import RaggedLayer
from kvstore.calibration import Calibration
from kvstore.compaction import compact_layer
from kvstore.kernels.device_copies import to_device
from kvstore.kernels.prefill_attention.op import prefill_attention
from kvstore.plans import AttentionProfile, PromptFacts
from kvstore.policies import Policy
from kvstore.policies.planner import CachePlanner
from kvstore.row_codecs import MODEL_ROWS, KeyValueLayout, RowCodec
from services.prefill.compute.layer_work import LayerWork
from services.prefill.compute.repetition import Repetition, repeat_prompt
from services.prefill.compute.stages import StageClock
from services.runtime.model.forward_pass import forward
from services.runtime.model.served_model import ServedModel


class PrefillStopped(Exception):
    """Raised inside a computation once `stop` is set, before the next layer."""


class Prefiller:
    """The computation of one prompt; an `AttentionHook` for the model.

    The forward pass over the prompt is exact under every policy; policies differ in the rows that
    the cache keeps. `emit` receives the index and rows of each layer during the last chunk, before
    the next layer computes. A policy that decides about the complete cache emits all layers after
    the last one, possibly after a second pass. `progress` receives the number of computed tokens
    after each chunk except the last. `calibration` holds the artefacts that the policy needs. The
    kept rows are encoded with `codec`.
    """

    def __init__(
        self,
        served: ServedModel,
        token_ids: Sequence[int],
        policy: Policy,
        *,
        chunk_tokens: int,
        emit: Callable[[int, RaggedLayer], None],
        progress: Callable[[int], None],
        stop: threading.Event,
        calibration: Calibration | None = None,
        codec: RowCodec = MODEL_ROWS,
    ) -> None:
        self._served = served
        self._codec = codec
        self._token_ids = to_device(torch.tensor(token_ids, dtype=torch.long), served.model.device)
        self._chunk_tokens = chunk_tokens
        self._emit = emit
        self._progress = progress
        self._stop = stop
        self._first = 0
        self._facts = PromptFacts(len(token_ids), served.tokenizer.classify(token_ids))
        self._planner = CachePlanner(
            policy,
            self._facts,
            served.shapes,
            lambda shape: KeyValueLayout(codec, shape.head_size, served.dtype).row_bytes,
            calibration or Calibration(),
        )
        self._layers: dict[int, LayerWork] = {
            index: LayerWork(
                self._planner.request(index), shape, len(token_ids), served.model.device
            )
            for index, shape in enumerate(served.shapes)
        }
        # keys and values of the layers that the policy has not decided about yet
        self._undecided: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        # profiles of those layers that a second pass has to complete
        self._incomplete: list[AttentionProfile] = []
        self.clock = StageClock(served.model.device)

    def run(self) -> None:
        """Compute the prompt. Raises `PrefillStopped` before the layer after `stop` is set."""
        with torch.inference_mode(), self.clock.stage("prefill"):
            for first in range(0, self._facts.tokens, self._chunk_tokens):
                if first:
                    with self.clock.stage("turn"):
                        self._progress(first)
                self._first = first
                chunk = self._token_ids[first : first + self._chunk_tokens]
                positions = torch.arange(first, first + len(chunk), device=chunk.device)
                forward(self._served, chunk[None], positions[None], self, logits=False)
            if self._incomplete:
                self._repeat()

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        """Compute a chunk's exact attention, profile it, and after the last chunk compact it."""
        self._require_running()
        layer, q, scale = inputs.layer, inputs.q[0], inputs.scale
        work = self._layers[layer]
        keys, values = work.history.append(inputs.k[0], inputs.v[0])
        out, lse = prefill_attention(
            q, keys, values, scale=scale, sliding_window=inputs.sliding_window
        )
        if work.profiler:
            with self.clock.stage("profile"):
                work.profiler.observe(q, keys, values, lse, self._first, scale)
        if keys.shape[1] == self._facts.tokens:
            self._finish(layer, keys, values)
        return out.transpose(0, 1)[None]

    def _require_running(self) -> None:
        if self._stop.is_set():
            raise PrefillStopped

    def _finish(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        work = self._layers.pop(layer)
        self._undecided[layer] = keys, values
        profile = None
        if work.profiler:
            with self.clock.stage("profile"):
                profile = work.profiler.profile()
        if profile and work.repeats:
            self._incomplete.append(profile)
        else:
            self._decide(profile)

    def _repeat(self) -> None:
        """Run the second pass, complete the profiles with it, and decide about every layer."""
        requests = [self._planner.request(layer) for layer in range(len(self._incomplete))]
        repetition = Repetition(self._undecided, [r for r in requests if r], self._require_running)
        with self.clock.stage("profile"):
            repeat_prompt(self._served, self._token_ids, repetition)
        for layer, profile in enumerate(self._incomplete):
            self._decide(repetition.complete(layer, profile))

    def _decide(self, profile: AttentionProfile | None) -> None:
        with self.clock.stage("profile"):
            decided = self._planner.add(profile)
        for index, plan in decided:
            with self.clock.stage("compact"):
                ragged = compact_layer(
                    *self._undecided.pop(index), plan, self._facts.classes, self._codec
                )
            with self.clock.stage("ship"):
                self._emit(index, ragged)
