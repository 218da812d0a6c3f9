"""Checks of token ids that both services make of what they are given."""

from __future__ import annotations

from collections.abc import Sequence

from headwise.errors import InvalidRequest


def check_tokens(
    token_ids: Sequence[int], field: str, vocabulary_size: int, max_tokens: int
) -> None:
    """Raise `InvalidRequest` for too many tokens or an id the model does not have."""
    if len(token_ids) > max_tokens:
        raise InvalidRequest(
            f"{len(token_ids)} tokens, the longest prompt served has {max_tokens}",
            "PROMPT_TOO_LONG",
            {"field": field, "limit": str(max_tokens)},
        )
    for place, token in enumerate(token_ids):
        if token >= vocabulary_size:
            raise InvalidRequest(
                f"token id {token} is not below the vocabulary size {vocabulary_size}",
                "UNKNOWN_TOKEN",
                {"field": f"{field}[{place}]"},
            )
