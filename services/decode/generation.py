"""A Generate request, checked and converted to plain values."""

from __future__ import annotations

import dataclasses
import math

from headwise.errors import InvalidRequest
from headwise.v1 import cache_pb2, decode_pb2
from kvstore.row_codecs import MODEL_ROWS, ElementCodec, RowCodec
from services.decode.engine.answer import EndRules
from services.decode.engine.sampling import SamplingParameters
from services.runtime.model.served_model import ServedModel
from services.runtime.model.tokenizer import PromptTokenizer
from services.runtime.serving.convert import codec_from_proto
from services.runtime.serving.prompt import Messages, check_tokens, prompt_tokens

MAX_STOP_TEXTS = 16
# the end of an answer is compared with every beginning of a stop text at each token
_MAX_STOP_CHARACTERS = 1024
MAX_STOP_TOKEN_IDS = 64
MAX_ANSWERS = 16
MAX_LOGPROBS = 20
_MAX_TEMPERATURE = 100.0
# the OpenAI API's bounds, which clients know
_MAX_PENALTY = 2.0
_REPETITION_PENALTIES = (0.1, 10.0)


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationSpec:
    """A prompt as tokens, the policy that prefill is to apply, and the rules of its answers.

    The first `session_tokens` of the tokens are those of a session; the prompt comes after them.
    All tokens come after the `context_tokens` of a stored cache, whose ids decode does not know.
    """

    token_ids: tuple[int, ...]
    policy: cache_pb2.Policy
    sampling: SamplingParameters
    ends: EndRules
    report_heads: bool
    codec: RowCodec = MODEL_ROWS
    session_tokens: int = 0
    context_tokens: int = 0
    answers: int = 1
    keep_session_seconds: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        return len(self.token_ids) - self.session_tokens

    @property
    def new_sessions(self) -> int:
        """The sessions that the answers add; the first answer on a session replaces it."""
        if not self.keep_session_seconds:
            return 0
        return self.answers - (self.session_tokens > 0)

    @property
    def final_tokens(self) -> int:
        """Tokens of the cache after the longest answer, whose last token is never fed."""
        return self.context_tokens + len(self.token_ids) + self.ends.max_tokens - 1

    @property
    def suffix(self) -> tuple[int, ...]:
        """The tokens that are not in the cache, which the engine feeds."""
        if self.session_tokens:
            return self.token_ids[self.session_tokens - 1 :]
        return self.token_ids if self.context_tokens else self.token_ids[-1:]


@dataclasses.dataclass(frozen=True, slots=True)
class HeldTokens:
    """Tokens that a cache holds before a prompt: those of a stored cache, then a session's.

    The last of a session's `token_ids` is not in its cache. The ids of the `context_tokens` of a
    stored cache are not known to decode.
    """

    token_ids: tuple[int, ...] = ()
    context_tokens: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationLimits:
    """Upper bounds of a request: tokens, answers, seconds; and the codecs that are allowed."""

    max_sequence_tokens: int
    default_max_tokens: int
    max_sequences: int
    max_session_seconds: float
    codecs: tuple[ElementCodec, ...] = tuple(ElementCodec)


def parse_generation(
    request: decode_pb2.GenerateRequest,
    served: ServedModel,
    limits: GenerationLimits,
    held: HeldTokens,
) -> GenerationSpec:
    """Return the generation that follows the held tokens.

    Raises the typed error of the request's first fault.
    """
    session_ids, context_tokens = held.token_ids, held.context_tokens
    sampling, answers = _sampling(request.sampling, limits)
    stop_ids = _stop_token_ids(request, served)
    prompt, field = _prompt(request, served.tokenizer, held)
    # at least one token of an answer must fit after the prompt
    max_prompt_tokens = limits.max_sequence_tokens - context_tokens - len(session_ids) - 1
    if max_prompt_tokens < 1:
        raise _full(held, limits)
    check_tokens(prompt, field, served.vocabulary_size, max_prompt_tokens)
    free_tokens = max_prompt_tokens + 1 - len(prompt)
    if request.max_tokens > free_tokens:
        raise _invalid(
            "max_tokens",
            f"{request.max_tokens} tokens do not fit: those before them leave {free_tokens}",
            "SEQUENCE_TOO_LONG",
        )
    asks_policy = bool(request.policy.name or request.policy.parameters.fields)
    if session_ids and asks_policy:
        raise _invalid("policy", "a session has its policy already", "POLICY_OF_SESSION")
    if context_tokens and asks_policy:
        raise _invalid("policy", "a stored cache has its policy already", "POLICY_OF_CACHE")
    if session_ids and request.HasField("codec"):
        raise _invalid("codec", "a session has its codec already", "CODEC_OF_SESSION")
    if context_tokens and request.HasField("codec"):
        raise _invalid("codec", "a stored cache has its codec already", "CODEC_OF_CACHE")
    keep = request.keep_session_seconds
    _require_within("keep_session_seconds", keep, 0, limits.max_session_seconds)
    return GenerationSpec(
        token_ids=(*session_ids, *prompt),
        policy=request.policy,
        sampling=sampling,
        ends=EndRules(
            max_tokens=request.max_tokens or min(limits.default_max_tokens, free_tokens),
            stop_texts=_stop_texts(request),
            stop_token_ids=stop_ids,
        ),
        report_heads=request.report_heads,
        codec=codec_from_proto(request.codec, limits.codecs),
        session_tokens=len(session_ids),
        context_tokens=context_tokens,
        answers=answers,
        keep_session_seconds=keep,
    )


def _full(held: HeldTokens, limits: GenerationLimits) -> InvalidRequest:
    """The error of a session, or of a stored cache, that leaves no room for a prompt."""
    name, field = ("session", "session_id") if held.token_ids else ("stored cache", "cache_handle")
    tokens = held.context_tokens + len(held.token_ids)
    return _invalid(
        field,
        f"the {name} has {tokens} tokens, and prompt and answer would make more than the "
        f"{limits.max_sequence_tokens} of a sequence; begin a new one with fewer tokens",
        "SEQUENCE_TOO_LONG",
    )


def _prompt(
    request: decode_pb2.GenerateRequest, tokenizer: PromptTokenizer, held: HeldTokens
) -> tuple[tuple[int, ...], str]:
    """Return the prompt's tokens, as they follow the held ones, and the field they came from."""
    session_ids, has_context = held.token_ids, held.context_tokens > 0

    def encode_chat(messages: Messages) -> list[int]:
        if session_ids:
            return tokenizer.encode_turn(messages, after=session_ids[-1])
        if has_context:
            return tokenizer.encode_question(messages)
        return tokenizer.encode_chat(messages)

    begins = not session_ids and not has_context
    return prompt_tokens(request, lambda text: tokenizer.encode(text, begins=begins), encode_chat)


def _sampling(
    sampling: decode_pb2.Sampling, limits: GenerationLimits
) -> tuple[SamplingParameters, int]:
    """Return the parameters of sampling, and the number of answers."""
    _require_within("sampling.temperature", sampling.temperature, 0, _MAX_TEMPERATURE)
    _require_within("sampling.top_p", sampling.top_p, 0, 1)
    _require_within("sampling.min_p", sampling.min_p, 0, 1)
    for name in ("presence_penalty", "frequency_penalty"):
        _require_within(f"sampling.{name}", getattr(sampling, name), -_MAX_PENALTY, _MAX_PENALTY)
    repetition = sampling.repetition_penalty or 1.0
    _require_within("sampling.repetition_penalty", repetition, *_REPETITION_PENALTIES)
    _require_within("sampling.n", sampling.n, 0, min(MAX_ANSWERS, limits.max_sequences))
    _require_within("sampling.logprobs", sampling.logprobs, 0, MAX_LOGPROBS)
    parameters = SamplingParameters(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p or 1.0,
        min_p=sampling.min_p,
        seed=sampling.seed if sampling.HasField("seed") else None,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=repetition,
        logprobs=sampling.logprobs,
    )
    return parameters, sampling.n or 1


def _stop_texts(request: decode_pb2.GenerateRequest) -> tuple[str, ...]:
    if len(request.stop) > MAX_STOP_TEXTS:
        raise _invalid("stop", f"{len(request.stop)} texts, at most {MAX_STOP_TEXTS}")
    for index, text in enumerate(request.stop):
        if not text:
            raise _invalid(f"stop[{index}]", "a stop text cannot be empty")
        if len(text) > _MAX_STOP_CHARACTERS:
            long = f"{len(text)} characters, at most {_MAX_STOP_CHARACTERS}"
            raise _invalid(f"stop[{index}]", long)
    return tuple(request.stop)


def _stop_token_ids(request: decode_pb2.GenerateRequest, served: ServedModel) -> frozenset[int]:
    ids = request.stop_token_ids
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise _invalid("stop_token_ids", f"{len(ids)} ids, at most {MAX_STOP_TOKEN_IDS}")
    check_tokens(ids, "stop_token_ids", served.vocabulary_size, MAX_STOP_TOKEN_IDS)
    # special tokens have no text that an answer could be searched for
    named = (served.tokenizer.special_token_id(text) for text in request.stop)
    special = frozenset(token_id for token_id in named if token_id is not None)
    own = frozenset[int]() if request.ignore_eos else served.eos_token_ids
    return frozenset(ids) | special | own


def _require_within(field: str, value: float, minimum: float, maximum: float) -> None:
    if not (math.isfinite(value) and minimum <= value <= maximum):
        raise _invalid(field, f"{value} is not within {minimum:g} and {maximum:g}")


def _invalid(field: str, message: str, reason: str = "PARAMETER_OUT_OF_RANGE") -> InvalidRequest:
    return InvalidRequest(f"{field}: {message}", reason, {"field": field})
