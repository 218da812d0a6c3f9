"""A second pass over a prompt that asks the model to repeat it, and what that looks at.

Source: Kim et al., KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction
(arXiv 2505.23416). What is needed to repeat the context is what any question may ask for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import torch

from kvstore.kernels.column_peak.op import column_peak
from kvstore.kernels.prefill_attention.op import prefill_attention
from services.prefill.stopped import PrefillStopped
from services.runtime.attention import forward
from services.runtime.model import ServedModel

# the paper's parts and requests, without its chat template: prompts here are tokens
_PART_TOKENS = 2048
_REQUEST = "\n\nRepeat the previous context exactly."
_FURTHER_REQUEST = "\n\nRepeat the part of the previous context exactly, starting with"
_REMINDER_TOKENS = 8
# a part has at least this many, though the last may then stand beyond the model's context
_LEAST_PART_TOKENS = 256


class Repetition:
    """An `AttentionHook`; `peaks` f32 `[HQ, T]` a layer, the most paid to each prompt token.

    `prompt` are each layer's dense keys and values `[H, T, D]`. The paper normalises a part's
    attention over that part of the cache alone; here each query's is over all it sees, which is
    the same for prompts of one part.
    """

    def __init__(
        self, prompt: Mapping[int, tuple[torch.Tensor, torch.Tensor]], stop: threading.Event
    ) -> None:
        self.peaks: dict[int, torch.Tensor] = {}
        self._prompt = prompt
        self._stop = stop

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        if self._stop.is_set():
            raise PrefillStopped
        keys, values = self._prompt[layer]
        all_keys, all_values = torch.cat([keys, k[0]], 1), torch.cat([values, v[0]], 1)
        out, lse = prefill_attention(
            q[0], all_keys, all_values, scale=scale, sliding_window=sliding_window
        )
        tokens = keys.shape[1]
        if layer not in self.peaks:
            self.peaks[layer] = torch.zeros(q.shape[1], tokens, device=q.device)
        column_peak(
            self.peaks[layer], q[0], keys, lse, tokens, scale=scale, sliding_window=sliding_window
        )
        return out.transpose(0, 1)[None]


def repeat_prompt(served: ServedModel, token_ids: torch.Tensor, repetition: Repetition) -> None:
    """Let the model read requests to repeat `token_ids` `[T]`, each with its answer."""
    tokens = len(token_ids)
    for part in _parts(served, token_ids):
        positions = torch.arange(tokens, tokens + len(part), device=part.device)
        forward(served, part[None], positions[None], repetition, logits=False)


def _parts(served: ServedModel, token_ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """Each part of the prompt after a request for it, which reminds of where it begins."""
    room = served.context_tokens - len(token_ids) - 2 * _REMINDER_TOKENS
    length = min(_PART_TOKENS, max(_LEAST_PART_TOKENS, room))
    for first in range(0, len(token_ids), length):
        text = _FURTHER_REQUEST if first else _REQUEST
        request = torch.tensor(served.tokenizer.encode(text), device=token_ids.device)
        reminder = token_ids[first - _REMINDER_TOKENS : first] if first else token_ids[:0]
        yield torch.cat([request, reminder, token_ids[first : first + length]])
