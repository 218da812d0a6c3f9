"""Runs one prompt through the model and hands out each layer, compacted, as it is finished."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch

from kvstore.attention_input import AttentionInput
from kvstore.cache import LayerShape, RaggedLayer
from kvstore.calibration import Calibration
from kvstore.compaction import compact_layer
from kvstore.kernels.prefill_attention.op import prefill_attention
from kvstore.plans import AttentionProfile, ProfileRequest, PromptFacts
from kvstore.policies import Policy
from kvstore.policies.planner import CachePlanner
from kvstore.profiling import Profiler
from kvstore.row_codecs import MODEL_ROWS, KeyValueLayout, RowCodec
from services.prefill.compute.history import LayerHistory
from services.prefill.compute.repetition import Repetition, repeat_prompt
from services.prefill.compute.stages import StageClock
from services.prefill.compute.stopped import PrefillStopped
from services.runtime.model.forward_pass import forward
from services.runtime.model.served_model import ServedModel


class LayerWork:
    """What one layer accumulates over the prompt's chunks."""

    def __init__(
        self,
        request: ProfileRequest | None,
        shape: LayerShape,
        tokens: int,
        device: torch.device,
    ) -> None:
        self.history = LayerHistory(tokens)
        self.profiler = Profiler(request, shape, tokens, device) if request else None
        self.repeats = request is not None and request.repeats


class Prefiller:
    """One prompt's computation; an `AttentionHook` for the model.

    The prompt's forward pass is exact whatever the policy; only what is kept differs. `emit`
    receives each layer during the last chunk, before the next layer computes, or all of them after
    the last layer where the policy decides about the whole cache, which may take a second pass.
    `progress` is told the tokens done after each chunk but the last. `calibration` holds the
    artefacts that the policy asks for. What is kept is coded by `codec`.
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
        self._token_ids = torch.tensor(token_ids, dtype=torch.long, device=served.model.device)
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
        # keys and values of layers that the policy has not decided about
        self._undecided: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        # their profiles, where a second pass has to complete them
        self._incomplete: list[AttentionProfile] = []
        self.clock = StageClock()

    def run(self) -> None:
        """Compute the whole prompt. Raises `PrefillStopped` within one layer of `stop`."""
        with torch.inference_mode(), self.clock.stage("prefill"):
            for first in range(0, self._facts.tokens, self._chunk_tokens):
                if first:
                    self._progress(first)
                self._first = first
                chunk = self._token_ids[first : first + self._chunk_tokens]
                positions = torch.arange(first, first + len(chunk), device=chunk.device)
                forward(self._served, chunk[None], positions[None], self, logits=False)
            if self._incomplete:
                self._repeat()

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        """Exact attention of a chunk; on the way the layer is profiled and, at last, compacted."""
        if self._stop.is_set():
            raise PrefillStopped
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
        """The second pass, and the decision that has waited for it."""
        requests = [self._planner.request(layer) for layer in range(len(self._incomplete))]
        repetition = Repetition(self._undecided, [r for r in requests if r], self._stop)
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
