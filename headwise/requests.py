"""Arguments of a call as plain values, and their messages on the wire."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack, cast

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.struct_pb2 import Struct

from headwise.former_names import GENERATE, LEASE, renamed
from headwise.v1 import cache_pb2, decode_pb2, store_pb2


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; `role` as the template names it: system, user, assistant."""

    role: str
    content: str


# text, token ids, or a conversation
Prompt = str | Sequence[int] | Sequence[Message]


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """The policy that compacts the prompt's cache: a name that the server knows, and parameters."""

    name: str = ""
    parameters: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def to_proto(self) -> cache_pb2.Policy:
        try:
            parameters = ParseDict(dict(self.parameters), Struct())
        except ParseError as error:
            raise TypeError(f"policy parameters must be JSON values: {error}") from error
        return cache_pb2.Policy(name=self.name, parameters=parameters)


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. `temperature` 0 means greedy; any other parameter is off at 0.

    `presence_penalty` and `frequency_penalty` count generated tokens; `repetition_penalty` counts
    the prompt's tokens too. `n`: the number of answers to the prompt; answer i uses seed + i.
    `logprobs`: return the log-probability of each token and of this many of the likeliest tokens.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 0.0
    seed: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 0.0
    n: int = 0
    logprobs: int = 0

    def to_proto(self) -> decode_pb2.Sampling:
        fields = dataclasses.fields(self)
        return decode_pb2.Sampling(**{f.name: getattr(self, f.name) for f in fields})


class GenerateOptions(TypedDict, total=False):
    """Keywords of `generate`, the same for both clients.

    - `policy`: a name or a `Policy`; absent means the server's default.
    - `codec`: the codec of the kept rows: "model", "fp8", "int8", "int4", or two of these for keys
      and values, as "int8/int4"; absent means "model", the model's own dtype.
    - `sampling`: absent means greedy.
    - `max_tokens`: tokens to generate at most; absent or 0 means the server's default.
    - `stop`: a text, or several, that end the answer; the answer does not contain them.
    - `stop_token_ids`: tokens that end the answer, besides the model's own end tokens.
    - `ignore_eos`: continue after the model's end tokens.
    - `report_heads`: add a report per KV head to the result.
    - `session_id`: the session to continue; a chat prompt then holds the messages since the
      session's last answer.
    - `session_ttl_seconds`: keep prompt and answer as a session for this many seconds without use.
    - `cache_handle`: the handle or content key of the stored cache that the prompt follows; see
      `CacheCalls`.
    """

    policy: Policy | str
    codec: str
    sampling: Sampling
    max_tokens: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    report_heads: bool
    session_id: str
    session_ttl_seconds: float
    cache_handle: str


class LeaseOptions(TypedDict, total=False):
    """Keywords of `keep` that concern the lease: `ttl_seconds`, more than 0."""

    ttl_seconds: float


def generate_request(
    prompt: Prompt, **options: Unpack[GenerateOptions]
) -> decode_pb2.GenerateRequest:
    """Build the request of `generate`.

    Raises `TypeError` for an unknown keyword, `ValueError` or `TypeError` for a value that its
    field cannot hold.
    """
    values = renamed(cast(Mapping[str, Any], options), GENERATE)
    unknown = values.keys() - GenerateOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"generate() got an unexpected keyword argument {min(unknown)!r}")
    policy, codec = values.pop("policy", ""), values.pop("codec", "")
    sampling = values.pop("sampling", None) or Sampling()
    ttl_seconds = values.pop("session_ttl_seconds", 0.0)
    if "stop" in values:
        values["stop"] = _texts(values["stop"])
    if "stop_token_ids" in values:
        _require_ids("stop_token_ids", values["stop_token_ids"])
    request = decode_pb2.GenerateRequest(**values, keep_session_seconds=ttl_seconds)
    request.policy.CopyFrom(_policy(policy or ""))
    if codec:
        request.codec.CopyFrom(_codec(codec))
    request.sampling.CopyFrom(sampling.to_proto())
    _set_prompt(request, prompt)
    return request


def keep_request(
    context: Prompt, policy: Policy | str, codec: str, lease: LeaseOptions
) -> store_pb2.KeepCacheRequest:
    """Build the request of `caches.keep`; raises as `generate_request` does."""
    options = _lease("keep", cast(Mapping[str, Any], lease))
    if not options:
        raise TypeError("keep() needs the keyword argument 'ttl_seconds'")
    ttl_seconds = options["ttl_seconds"]
    request = store_pb2.KeepCacheRequest(keep_for_seconds=ttl_seconds, policy=_policy(policy))
    if codec:
        request.codec.CopyFrom(_codec(codec))
    _set_prompt(request, context)
    return request


def renew_request(
    handle: str, ttl_seconds: float, earlier: Mapping[str, float]
) -> store_pb2.RenewLeaseRequest:
    """Build the request of `caches.renew`; `earlier` may hold the TTL under its earlier name."""
    given = {"ttl_seconds": ttl_seconds} if ttl_seconds else {}
    options = _lease("renew", {**given, **earlier})
    return store_pb2.RenewLeaseRequest(
        handle=handle, keep_for_seconds=options.get("ttl_seconds", 0.0)
    )


def _lease(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a lease. Raises `TypeError` for an unknown keyword."""
    options = renamed(given, LEASE)
    unknown = options.keys() - LeaseOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"{method}() got an unexpected keyword argument {min(unknown)!r}")
    return options


def _texts(given: str | Sequence[str]) -> Sequence[str]:
    """Return the texts; one text is a list of itself and not of its letters."""
    return (given,) if isinstance(given, str) else given


def _require_ids(field: str, given: object) -> None:
    """Raise `TypeError` for bytes, whose elements would pass as token ids, and for a text."""
    if isinstance(given, str | bytes | bytearray | memoryview):
        raise TypeError(f"{field}: a list of token ids, not {type(given).__name__}")


def _codec(spelling: str) -> cache_pb2.RowCodec:
    """Parse "int8", or "int8/int4" for keys and values."""
    keys, _, values = spelling.partition("/")
    return cache_pb2.RowCodec(keys=keys, values=values)


def _policy(policy: Policy | str) -> cache_pb2.Policy:
    return (Policy(policy) if isinstance(policy, str) else policy).to_proto()


def _set_prompt(
    request: decode_pb2.GenerateRequest | store_pb2.KeepCacheRequest, prompt: Prompt
) -> None:
    if isinstance(prompt, str):
        request.text = prompt
    elif isinstance(next(iter(prompt), None), Message):
        messages = [
            decode_pb2.ChatMessage(role=message.role, content=message.content)
            for message in cast(Sequence[Message], prompt)
        ]
        request.chat.CopyFrom(decode_pb2.ChatMessages(messages=messages))
    else:
        _require_ids("prompt", prompt)
        # protobuf refuses values that are not token ids
        request.tokens.CopyFrom(decode_pb2.TokenIds(ids=cast(Sequence[int], prompt)))
