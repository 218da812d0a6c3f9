"""Greedy decoding under retention rules, as slowly and plainly as possible.

Every key and value ever computed is kept in float64 with the whole of attention; what a rule has
evicted is masked. Which rows a rule keeps is decided row by row in plain Python, by the words of
`RetentionRule`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence

import torch

from kvstore.attention_input import AttentionInput
from kvstore.cache import RaggedLayer
from kvstore.retention import RETENTION_CHUNK_TOKENS
from kvstore.rules import RetentionRule, ScoreUpdate
from services.runtime.model.forward_pass import forward
from services.runtime.model.served_model import ServedModel


@dataclasses.dataclass
class SlowHead:
    """One KV head: its rule, the positions it still holds, and their scores."""

    rule: RetentionRule
    scores: dict[int, float]

    @classmethod
    def of(cls, layer: RaggedLayer) -> list[SlowHead]:
        """Return the rows that prefill kept of each head."""
        return [
            cls(
                rows.rule,
                dict(
                    zip(
                        rows.positions.tolist(),
                        [0.0] * rows.rows if rows.scores is None else rows.scores.tolist(),
                        strict=True,
                    )
                ),
            )
            for rows in layer.heads()
        ]

    def end_block(self, received: dict[int, float], classes: Sequence[int], length: int) -> None:
        """Grow the scores by what was received, then let go of what the rule does not keep."""
        if self.rule.score_update is not ScoreUpdate.NONE:
            self.scores = {p: self.scores.get(p, 0.0) + mass for p, mass in received.items()}
        else:
            self.scores = dict.fromkeys(received, 0.0)
        kept = {p for p in self.scores if self._kept_by_clause(p, classes[p], length)}
        kept |= self._budgeted(kept, length)
        self.scores = {p: score for p, score in self.scores.items() if p in kept}

    def _kept_by_clause(self, position: int, token_class: int, length: int) -> bool:
        rule, age = self.rule, length - 1 - position
        recent = max(rule.window, rule.floor_rows - rule.sinks)
        return (
            rule.full
            or bool(token_class & rule.protected)
            or position < rule.sinks
            or age < recent
            or (position >= rule.generated_from and age < rule.generated_window)
        )

    def _budgeted(self, kept: set[int], length: int) -> set[int]:
        rule = self.rule
        rows = max(rule.budget_rows, math.ceil(rule.budget_ratio * length - 1e-9))
        rivals = [p for p in self.scores if not (rule.budget_beyond and p in kept)]
        return set(sorted(rivals, key=lambda p: (-self.scores[p], p))[:rows])


class SlowDecoder:
    """An `AttentionHook` over a float64 copy of the model, with every row in `[H, T, D]`."""

    def __init__(self, served: ServedModel, layers: Sequence[RaggedLayer]) -> None:
        model = copy.deepcopy(served.model).double()
        self.served = dataclasses.replace(served, model=model, dtype=torch.float64)
        self.heads = [SlowHead.of(layer) for layer in layers]
        self._seen: list[int] = []
        self._rows: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._received: dict[int, list[dict[int, float]]] = {}

    def generate(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """The prompt but its last token in one go, unmasked as prefill computes it; then decode."""
        self.prefill(prompt[:-1])
        return self.answer(prompt[-1:], tokens)

    def prefill(self, prompt: Sequence[int]) -> None:
        self._run(list(prompt))
        self._seen += prompt

    def answer(self, suffix: Sequence[int], tokens: int) -> list[int]:
        """Feed a suffix in blocks, then choose greedily; the last token chosen is not fed."""
        found = [self._feed(suffix)]
        while len(found) < tokens:
            found.append(self._feed(found[-1:]))
        return found

    def _feed(self, suffix: Sequence[int]) -> int:
        for first in range(0, len(suffix), RETENTION_CHUNK_TOKENS):
            block = list(suffix[first : first + RETENTION_CHUNK_TOKENS])
            logits = self._run(block)
            self._seen += block
            classes = self.served.tokenizer.classes[torch.tensor(self._seen)].tolist()
            for layer, heads in enumerate(self.heads):
                for head, received in zip(heads, self._received[layer], strict=True):
                    head.end_block(received, classes, len(self._seen))
        return int(logits.argmax())

    def _run(self, token_ids: list[int]) -> torch.Tensor:
        first = len(self._seen)
        positions = torch.arange(first, first + len(token_ids))[None]
        ids = torch.tensor([token_ids])
        logits = forward(self.served, ids, positions, self, logits=True)
        assert logits is not None
        return logits[0]

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        """Dense attention over all rows ever seen, under each head's mask."""
        q, k, v = inputs.q, inputs.k, inputs.v
        if inputs.layer not in self._rows:
            self._rows[inputs.layer] = k[0], v[0]
        else:
            keys, values = self._rows[inputs.layer]
            self._rows[inputs.layer] = torch.cat((keys, k[0]), 1), torch.cat((values, v[0]), 1)
        keys, values = self._rows[inputs.layer]
        group, fed, seen = q.shape[1] // keys.shape[0], q.shape[2], keys.shape[1]
        logits = q[0].unflatten(0, (-1, group)) @ keys[:, None].transpose(2, 3) * inputs.scale
        logits.masked_fill_(~self._visible(inputs.layer, fed, seen), -torch.inf)
        probabilities = logits.softmax(-1)
        self._note(inputs.layer, probabilities)
        return (probabilities @ values[:, None]).flatten(0, 1).transpose(0, 1)[None]

    def _visible(self, layer: int, fed: int, seen: int) -> torch.Tensor:
        """Causal; and while decoding, what the head holds and the block itself."""
        causal = torch.ones(fed, seen, dtype=torch.bool).tril(seen - fed)
        if fed == seen:
            return causal
        held = torch.zeros(len(self.heads[layer]), 1, 1, seen, dtype=torch.bool)
        held[..., seen - fed :] = True
        for number, head in enumerate(self.heads[layer]):
            held[number, ..., list(head.scores)] = True
        return held & causal

    def _note(self, layer: int, probabilities: torch.Tensor) -> None:
        """Add the attention of held and fed rows: summed over queries, mean over G heads."""
        fed, seen = probabilities.shape[-2:]
        received = probabilities.sum(2).mean(1)
        self._received[layer] = [
            {p: float(received[number, p]) for p in [*head.scores, *range(seen - fed, seen)]}
            for number, head in enumerate(self.heads[layer])
        ]
