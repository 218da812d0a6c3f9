"""The size of a prompt by counting, before any of it is rendered, tokenized or copied."""

from __future__ import annotations

import dataclasses

from headwise.errors import InvalidRequest
from headwise.v1 import cache_pb2, decode_pb2, store_pb2

# rendering and tokenizing so much takes about a millisecond, less than a change of threads may wait
_SMALL_CHARACTERS = 4096
_SMALL_MESSAGES = 32
# the parameters of a policy are a few numbers; budgets of every head of 128 layers are 20 KB
_MAX_POLICY_BYTES = 64 << 10


@dataclasses.dataclass(frozen=True, slots=True)
class PromptSize:
    """Counts of a prompt, and the fewest tokens that it can have."""

    messages: int
    characters: int
    least_tokens: int

    @property
    def small(self) -> bool:
        """Whether the prompt may be rendered and tokenized on the event loop."""
        return self.messages <= _SMALL_MESSAGES and self.characters <= _SMALL_CHARACTERS


def count_prompt(
    request: decode_pb2.GenerateRequest | store_pb2.KeepCacheRequest,
    longest_token: int,
    max_tokens: int,
) -> PromptSize:
    """Return the counts of a request's prompt. Raises `InvalidRequest` if it cannot fit.

    A message takes at least one token, and `longest_token` is the most characters of one.
    """
    require_small_policy(request.policy)
    match request.WhichOneof("prompt"):
        case "text":
            characters = len(request.text)
            least = -(-characters // longest_token)
            require_fit(least, "text", max_tokens, at_least=True)
            return PromptSize(0, characters, least)
        case "tokens":
            ids = len(request.tokens.ids)
            require_fit(ids, "tokens.ids", max_tokens)
            return PromptSize(0, 0, ids)
        case "chat":
            return _count_chat(request.chat, longest_token, max_tokens)
    return PromptSize(0, 0, 0)


def require_fit(tokens: int, field: str, max_tokens: int, *, at_least: bool = False) -> None:
    """Raise `InvalidRequest` for more tokens than are served."""
    if tokens > max_tokens:
        raise InvalidRequest(
            f"{'at least ' * at_least}{tokens} tokens, the longest prompt served has {max_tokens}",
            "PROMPT_TOO_LONG",
            {"field": field, "limit": str(max_tokens)},
        )


def require_small_policy(policy: cache_pb2.Policy) -> None:
    """Raise `InvalidRequest` for parameters that take long to read."""
    size = policy.ByteSize()
    if size > _MAX_POLICY_BYTES:
        raise InvalidRequest(
            f"policy: {size} bytes, at most {_MAX_POLICY_BYTES} are read",
            "PARAMETER_OUT_OF_RANGE",
            {"field": "policy"},
        )


def _count_chat(chat: decode_pb2.ChatMessages, longest_token: int, max_tokens: int) -> PromptSize:
    messages = len(chat.messages)
    require_fit(messages, "chat.messages", max_tokens, at_least=True)
    characters = sum(len(each.role) + len(each.content) for each in chat.messages)
    least = max(messages, -(-characters // longest_token))
    require_fit(least, "chat.messages", max_tokens, at_least=True)
    return PromptSize(messages, characters, least)
