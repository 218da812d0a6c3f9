"""Arguments of a call as plain values, and their messages on the wire."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
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


# text, token ids, or a conversation, whose messages may be dicts with role and content
Prompt = str | Sequence[int] | Sequence[Message | Mapping[str, str]]


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
    - `sampling`: absent means greedy. `temperature` and the other parameters of `Sampling` may be
      given as keywords of their own in its place.
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
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    n: int
    logprobs: int
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
    sampling = _sampling(values)
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


def _sampling(values: dict[str, Any]) -> Sampling:
    """Take the sampling out of `values`, given whole or by its parameters."""
    whole: Sampling | None = values.pop("sampling", None)
    names = {field.name for field in dataclasses.fields(Sampling)} & values.keys()
    parameters = {name: values.pop(name) for name in names}
    if whole is not None and parameters:
        raise TypeError(f"give {min(parameters)} within sampling, or without sampling")
    return whole or Sampling(**parameters)


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
        return
    if isinstance(prompt, Message | Mapping | bytes) or not isinstance(prompt, Iterable):
        raise TypeError(f"a prompt is a text, a list of token ids or of messages, not {prompt!r}")
    entries = list(prompt)
    if entries and isinstance(entries[0], Message | Mapping):
        messages = [_message(place, entry) for place, entry in enumerate(entries)]
        request.chat.CopyFrom(decode_pb2.ChatMessages(messages=messages))
    else:
        _require_ids("prompt", prompt)
        # protobuf refuses values that are not token ids
        request.tokens.CopyFrom(decode_pb2.TokenIds(ids=cast(Sequence[int], entries)))


def _message(place: int, entry: object) -> decode_pb2.ChatMessage:
    if isinstance(entry, Mapping) and entry.keys() == {"role", "content"}:
        entry = Message(entry["role"], entry["content"])
    if not isinstance(entry, Message):
        raise TypeError(
            f"messages[{place}] is a Message, or a dict with role and content alone, not {entry!r}"
        )
    for name in ("role", "content"):
        if not isinstance(getattr(entry, name), str):
            raise TypeError(f"messages[{place}].{name} is a text, not {getattr(entry, name)!r}")
    return decode_pb2.ChatMessage(role=entry.role, content=entry.content)
