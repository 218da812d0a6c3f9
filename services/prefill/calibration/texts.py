"""The text for measurements of models: the documentation that ships with Python."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from services.runtime.model.served_model import ServedModel


def all_topics(served: ServedModel) -> list[int]:
    """Return the tokens of all topics of Python's documentation, sorted by name."""
    from pydoc_data.topics import topics

    return served.tokenizer.encode("\n\n".join(topics[name] for name in sorted(topics)))


def spread_texts(served: ServedModel, count: int, max_tokens: int) -> Iterator[torch.Tensor]:
    """Yield `count` evenly spread parts of at most `max_tokens` tokens and the model's context."""
    ids = torch.tensor(all_topics(served))
    tokens = min(max_tokens, served.context_tokens)
    for number in range(count):
        first = number * (len(ids) - tokens) // count
        yield ids[first : first + tokens].to(served.model.device)
