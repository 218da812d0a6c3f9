"""The text that models are measured on: documentation that every Python carries."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from services.runtime.model.served_model import ServedModel


def all_topics(served: ServedModel) -> list[int]:
    """Every topic of the built-in documentation, by name."""
    from pydoc_data.topics import topics

    return served.tokenizer.encode("\n\n".join(topics[name] for name in sorted(topics)))


def spread_texts(served: ServedModel, count: int, most_tokens: int) -> Iterator[torch.Tensor]:
    """So many parts of it, spread evenly, each of `most_tokens` or the model's whole context."""
    ids = torch.tensor(all_topics(served))
    tokens = min(most_tokens, served.context_tokens)
    for number in range(count):
        first = number * (len(ids) - tokens) // count
        yield ids[first : first + tokens].to(served.model.device)
