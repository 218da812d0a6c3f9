"""A second pass that asks the model to repeat its prompt, and records the attention it pays.

Source: Kim et al., KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction
(arXiv 2505.23416). Rows that the model needs to repeat the context can answer any question on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from kvstore.attention_input import AttentionInput
from kvstore.kernels.column_peak.op import column_peak
from kvstore.kernels.prefill_attention.op import prefill_attention
from kvstore.plans import AttentionProfile, ProfileRequest, ReferenceAttention
from services.runtime.model.forward_pass import forward
from services.runtime.model.served_model import ServedModel

# parts and requests as in the paper, without its chat template, because prompts here are tokens
_PART_TOKENS = 2048
_REQUEST = "\n\nRepeat the previous context exactly."
_FURTHER_REQUEST = "\n\nRepeat the part of the previous context exactly, starting with"
_REMINDER_TOKENS = 8
# minimum length of a part, even where the last one then exceeds the model's context
_MIN_PART_TOKENS = 256


class Repetition:
    """An `AttentionHook` for the second pass over a prompt of T tokens; measures the `requests`.

    `prompt` holds the dense keys and values `[H, T, D]` of each layer. `require_running` raises an
    exception before a layer if the computation shall end. The paper normalises the attention of a
    part over that part of the cache alone; here each query's attention is normalised over all
    tokens it sees, which is the same for prompts of one part.
    """

    def __init__(
        self,
        prompt: Mapping[int, tuple[torch.Tensor, torch.Tensor]],
        requests: Sequence[ProfileRequest],
        require_running: Callable[[], None],
    ) -> None:
        self._prompt = prompt
        self._requests = requests
        self._require_running = require_running
        self._peaks: dict[int, torch.Tensor] = {}
        self._queries: dict[int, list[torch.Tensor]] = {}
        self._positions: dict[int, list[torch.Tensor]] = {}
        self._scales: dict[int, float] = {}
        self._part_position = 0
        self._asking_tokens = 0

    def begin_part(self, position: int, asking_tokens: int) -> None:
        """Start a part at `position`, whose first `asking_tokens` tokens are the request."""
        self._part_position, self._asking_tokens = position, asking_tokens

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        self._require_running()
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
        """Return the profile with the peaks and queries that the second pass has measured."""
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
    """Run the model over requests to repeat `token_ids` `[T]` in parts, each with its answer."""
    tokens = len(token_ids)
    for asking, answer in _parts(served, token_ids):
        part = torch.cat([asking, answer])
        positions = torch.arange(tokens, tokens + len(part), device=part.device)
        repetition.begin_part(tokens, len(asking))
        forward(served, part[None], positions[None], repetition, logits=False)


def _parts(
    served: ServedModel, token_ids: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield a request for each part of the prompt, which quotes its beginning, and the part."""
    room = served.context_tokens - len(token_ids) - 2 * _REMINDER_TOKENS
    length = min(_PART_TOKENS, max(_MIN_PART_TOKENS, room))
    for first in range(0, len(token_ids), length):
        text = _FURTHER_REQUEST if first else _REQUEST
        request = torch.tensor(served.tokenizer.encode(text), device=token_ids.device)
        reminder = token_ids[first - _REMINDER_TOKENS : first] if first else token_ids[:0]
        yield torch.cat([request, reminder]), token_ids[first : first + length]
