"""A second pass over a prompt that asks the model to repeat it: its queries, and what they look at.

Source: Kim et al., KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction
(arXiv 2505.23416). What is needed to repeat the context is what any question may ask for.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence

import torch

from kvstore.attention_input import AttentionInput
from kvstore.kernels.column_peak.op import column_peak
from kvstore.kernels.prefill_attention.op import prefill_attention
from kvstore.plans import AttentionProfile, ProfileRequest, ReferenceAttention
from services.prefill.compute.stopped import PrefillStopped
from services.runtime.model.forward_pass import forward
from services.runtime.model.served_model import ServedModel

# the paper's parts and requests, without its chat template: prompts here are tokens
_PART_TOKENS = 2048
_REQUEST = "\n\nRepeat the previous context exactly."
_FURTHER_REQUEST = "\n\nRepeat the part of the previous context exactly, starting with"
_REMINDER_TOKENS = 8
# a part has at least this many, though the last may then stand beyond the model's context
_LEAST_PART_TOKENS = 256


class Repetition:
    """An `AttentionHook` for the second pass over a prompt of T tokens; learns what `requests` ask.

    `prompt` are each layer's dense keys and values `[H, T, D]`. The paper normalises a part's
    attention over that part of the cache alone; here each query's is over all it sees, which is
    the same for prompts of one part.
    """

    def __init__(
        self,
        prompt: Mapping[int, tuple[torch.Tensor, torch.Tensor]],
        requests: Sequence[ProfileRequest],
        stop: threading.Event,
    ) -> None:
        self._prompt = prompt
        self._requests = requests
        self._stop = stop
        self._peaks: dict[int, torch.Tensor] = {}
        self._queries: dict[int, list[torch.Tensor]] = {}
        self._positions: dict[int, list[torch.Tensor]] = {}
        self._scales: dict[int, float] = {}
        self._part_position = 0
        self._asking_tokens = 0

    def begin_part(self, position: int, asking_tokens: int) -> None:
        """The next pass begins at `position`, with so many tokens that repeat nothing yet."""
        self._part_position, self._asking_tokens = position, asking_tokens

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        if self._stop.is_set():
            raise PrefillStopped
        layer, q, scale, window = inputs.layer, inputs.q[0], inputs.scale, inputs.sliding_window
        keys, values = self._prompt[layer]
        all_keys = torch.cat([keys, inputs.k[0]], 1)
        all_values = torch.cat([values, inputs.v[0]], 1)
        out, lse = prefill_attention(q, all_keys, all_values, scale=scale, sliding_window=window)
        tokens, request = keys.shape[1], self._requests[layer]
        if request.reconstruct:
            peaks = self._peaks.setdefault(layer, torch.zeros(len(q), tokens, device=q.device))
            column_peak(peaks, q, keys, lse, tokens, scale=scale, sliding_window=window)
        if request.reference_queries:
            self._scales[layer] = scale
            self._sample(layer, q, max(1, tokens // request.reference_queries))
        return out.transpose(0, 1)[None]

    def complete(self, layer: int, profile: AttentionProfile) -> AttentionProfile:
        """The profile with what the second pass has shown."""
        peaks, reference = self._peaks.get(layer), profile.reference
        if peaks is not None:
            peaks = peaks.view(*profile.far.shape[:2], -1)
        if layer in self._queries:
            queries = torch.cat(self._queries[layer], 1)
            positions = torch.cat(self._positions[layer])
            keys, values = self._prompt[layer]
            reference = ReferenceAttention(queries, positions, keys, values, self._scales[layer])
        return dataclasses.replace(profile, peaks=peaks, reference=reference)

    def _sample(self, layer: int, q: torch.Tensor, stride: int) -> None:
        rows = torch.arange(self._asking_tokens + stride // 2, q.shape[1], stride)
        self._queries.setdefault(layer, []).append(q[:, rows.to(q.device)])
        self._positions.setdefault(layer, []).append(self._part_position + rows)


def repeat_prompt(served: ServedModel, token_ids: torch.Tensor, repetition: Repetition) -> None:
    """Let the model read requests to repeat `token_ids` `[T]`, each with its answer."""
    tokens = len(token_ids)
    for asking, answer in _parts(served, token_ids):
        part = torch.cat([asking, answer])
        positions = torch.arange(tokens, tokens + len(part), device=part.device)
        repetition.begin_part(tokens, len(asking))
        forward(served, part[None], positions[None], repetition, logits=False)


def _parts(
    served: ServedModel, token_ids: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A request for each part of the prompt, which reminds of where it begins, and the part."""
    room = served.context_tokens - len(token_ids) - 2 * _REMINDER_TOKENS
    length = min(_PART_TOKENS, max(_LEAST_PART_TOKENS, room))
    for first in range(0, len(token_ids), length):
        text = _FURTHER_REQUEST if first else _REQUEST
        request = torch.tensor(served.tokenizer.encode(text), device=token_ids.device)
        reminder = token_ids[first - _REMINDER_TOKENS : first] if first else token_ids[:0]
        yield torch.cat([request, reminder]), token_ids[first : first + length]
