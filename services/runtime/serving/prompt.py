"""The prompt of a request as checked tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headwise.errors import InvalidRequest
from headwise.v1 import decode_pb2, store_pb2
from kvstore.errors import InvalidParameter
from services.runtime.model.tokenizer import PromptTokenizer
from services.runtime.serving.prompt_size import require_fit

Messages = Sequence[tuple[str, str]]


def prompt_tokens(
    request: decode_pb2.GenerateRequest | store_pb2.KeepCacheRequest,
    encode_text: Callable[[str], list[int]],
    encode_chat: Callable[[Messages], list[int]],
) -> tuple[tuple[int, ...], str]:
    """Return the prompt's tokens, at least one, and their field. Raises `InvalidRequest`."""
    match request.WhichOneof("prompt"):
        case "text":
            field, tokens = "text", encode_text(request.text)
        case "tokens":
            field, tokens = "tokens.ids", list(request.tokens.ids)
        case "chat":
            field = "chat.messages"
            tokens = _chat(request.chat, encode_chat)
        case _:
            field, tokens = "prompt", []
    if not tokens:
        raise InvalidRequest(f"{field}: the prompt is empty", "EMPTY_PROMPT", {"field": field})
    return tuple(tokens), field


def context_tokens(
    request: store_pb2.KeepCacheRequest, tokenizer: PromptTokenizer
) -> tuple[tuple[int, ...], str]:
    """Return the tokens of a prompt that later messages continue, and their field."""
    return prompt_tokens(request, tokenizer.encode, tokenizer.encode_context)


def check_tokens(
    token_ids: Sequence[int], field: str, vocabulary_size: int, max_tokens: int
) -> None:
    """Raise `InvalidRequest` for too many tokens or an id outside the vocabulary."""
    require_fit(len(token_ids), field, max_tokens)
    for place, token in enumerate(token_ids):
        if token >= vocabulary_size:
            raise InvalidRequest(
                f"token id {token} is not below the vocabulary size {vocabulary_size}",
                "UNKNOWN_TOKEN",
                {"field": f"{field}[{place}]"},
            )


def _chat(chat: decode_pb2.ChatMessages, encode: Callable[[Messages], list[int]]) -> list[int]:
    """Return the templated tokens; none without messages, even if a template adds text then."""
    messages = [(message.role, message.content) for message in chat.messages]
    if not messages:
        return []
    try:
        return encode(messages)
    except InvalidParameter as error:
        raise InvalidRequest(str(error), "CHAT_REFUSED", {"field": "chat.messages"}) from error
