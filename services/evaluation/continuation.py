"""The exact model's own continuation, which is then forced onto compact caches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvstore.policies.full import Full
from services.evaluation.passages import Passage
from services.evaluation.prompt_record import PromptRecord
from services.evaluation.teacher_forcing import dense_logits, feed, open_pages
from services.runtime.model.served_model import ServedModel

_SEED = 11


def sample_continuation(
    served: ServedModel, record: PromptRecord, prompt: Sequence[int], tokens: int
) -> Passage:
    """`tokens` drawn from the full cache's own predictions, at temperature 1 from a fixed seed.

    Greedy text soon repeats itself; of drawn text the mean KL is that of the two models' texts.
    """
    generator = torch.Generator().manual_seed(_SEED)
    (pages,) = open_pages(served, [record.compact(Full())], len(prompt), tokens)
    logits = dense_logits(served, prompt[:-1], prompt[-1:])[0]
    drawn: list[int] = []
    while True:
        probabilities = logits.float().softmax(-1).cpu()
        drawn.append(int(torch.multinomial(probabilities, 1, generator=generator)))
        if len(drawn) > tokens:
            return Passage(tuple(prompt), tuple(drawn[:-1]), tuple(drawn[1:]))
        logits = feed(served, [pages], drawn[-1:])[0]
