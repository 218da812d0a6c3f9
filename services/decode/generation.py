"""What a Generate request asks for, checked."""

from __future__ import annotations

import dataclasses
import math

from headwise.errors import InvalidRequest, NotSupported
from headwise.v1 import cache_pb2, decode_pb2
from kvstore.errors import InvalidParameter
from services.decode.answer import EndRules
from services.decode.sampling import SamplingParameters
from services.runtime.limits import check_tokens
from services.runtime.model import ServedModel

MAX_STOP_TEXTS = 16
MAX_STOP_TOKEN_IDS = 64
_MAX_TEMPERATURE = 100.0
# the OpenAI API's bounds, which clients know
_MAX_PENALTY = 2.0
_REPETITION_PENALTIES = (0.1, 10.0)


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationSpec:
    """A prompt as tokens, the policy to pass on, and how to continue."""

    token_ids: tuple[int, ...]
    policy: cache_pb2.Policy
    sampling: SamplingParameters
    ends: EndRules
    report_heads: bool

    @property
    def final_tokens(self) -> int:
        """Tokens the cache may have seen at the end; the last token made is never fed."""
        return len(self.token_ids) + self.ends.max_tokens - 1


def parse_generation(
    request: decode_pb2.GenerateRequest,
    served: ServedModel,
    *,
    max_sequence_tokens: int,
    default_max_tokens: int,
) -> GenerationSpec:
    """Raises the typed error of the first thing that is wrong."""
    sampling = _sampling(request.sampling)
    stop_ids = _stop_token_ids(request, served)
    token_ids, field = _prompt(request, served)
    # one token at least must still fit
    check_tokens(token_ids, field, served.vocabulary_size, max_sequence_tokens - 1)
    room = max_sequence_tokens - len(token_ids)
    if request.max_tokens > room:
        raise _invalid(
            "max_tokens",
            f"{request.max_tokens} tokens do not fit: the prompt's {len(token_ids)} leave {room}",
            "SEQUENCE_TOO_LONG",
        )
    return GenerationSpec(
        token_ids=token_ids,
        policy=request.policy,
        sampling=sampling,
        ends=EndRules(
            max_tokens=request.max_tokens or min(default_max_tokens, room),
            stop_texts=_stop_texts(request),
            stop_token_ids=stop_ids,
        ),
        report_heads=request.report_heads,
    )


def _prompt(
    request: decode_pb2.GenerateRequest, served: ServedModel
) -> tuple[tuple[int, ...], str]:
    """The prompt's tokens and the field they came from."""
    match request.WhichOneof("prompt"):
        case "text":
            field, tokens = "text", served.tokenizer.encode(request.text)
        case "tokens":
            field, tokens = "tokens.ids", list(request.tokens.ids)
        case "chat":
            field = "chat.messages"
            tokens = _encode_chat(request.chat, served)
        case _:
            field, tokens = "prompt", []
    if not tokens:
        raise _invalid(field, "the prompt is empty", "EMPTY_PROMPT")
    return tuple(tokens), field


def _encode_chat(chat: decode_pb2.ChatMessages, served: ServedModel) -> list[int]:
    """The templated tokens; none without messages, whatever a template would write around them."""
    turns = [(message.role, message.content) for message in chat.messages]
    try:
        return served.tokenizer.encode_chat(turns) if turns else []
    except InvalidParameter as error:
        raise InvalidRequest(str(error), "CHAT_REFUSED", {"field": "chat.messages"}) from error


def _sampling(sampling: decode_pb2.Sampling) -> SamplingParameters:
    _require_within("sampling.temperature", sampling.temperature, 0, _MAX_TEMPERATURE)
    _require_within("sampling.top_p", sampling.top_p, 0, 1)
    _require_within("sampling.min_p", sampling.min_p, 0, 1)
    for name in ("presence_penalty", "frequency_penalty"):
        _require_within(f"sampling.{name}", getattr(sampling, name), -_MAX_PENALTY, _MAX_PENALTY)
    repetition = sampling.repetition_penalty or 1.0
    _require_within("sampling.repetition_penalty", repetition, *_REPETITION_PENALTIES)
    if sampling.n > 1:
        raise _not_served("sampling.n")
    if sampling.logprobs:
        raise _not_served("sampling.logprobs")
    return SamplingParameters(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p or 1.0,
        min_p=sampling.min_p,
        seed=sampling.seed if sampling.HasField("seed") else None,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=repetition,
    )


def _stop_texts(request: decode_pb2.GenerateRequest) -> tuple[str, ...]:
    if len(request.stop) > MAX_STOP_TEXTS:
        raise _invalid("stop", f"{len(request.stop)} texts, at most {MAX_STOP_TEXTS}")
    for place, text in enumerate(request.stop):
        if not text:
            raise _invalid(f"stop[{place}]", "a stop text cannot be empty")
    return tuple(request.stop)


def _stop_token_ids(request: decode_pb2.GenerateRequest, served: ServedModel) -> frozenset[int]:
    ids = request.stop_token_ids
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise _invalid("stop_token_ids", f"{len(ids)} ids, at most {MAX_STOP_TOKEN_IDS}")
    check_tokens(ids, "stop_token_ids", served.vocabulary_size, MAX_STOP_TOKEN_IDS)
    return frozenset(ids) | (frozenset() if request.ignore_eos else served.eos_token_ids)


def _require_within(field: str, value: float, minimum: float, maximum: float) -> None:
    if not (math.isfinite(value) and minimum <= value <= maximum):
        raise _invalid(field, f"{value} is not within {minimum:g} and {maximum:g}")


def _invalid(field: str, message: str, reason: str = "PARAMETER_OUT_OF_RANGE") -> InvalidRequest:
    return InvalidRequest(f"{field}: {message}", reason, {"field": field})


def _not_served(field: str) -> NotSupported:
    return NotSupported(f"{field} is not served yet", "NOT_SERVED_YET", {"field": field})
