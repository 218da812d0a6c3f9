"""What a caller says, as plain values, and its form on the wire."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack, cast

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.struct_pb2 import Struct

from headwise.v1 import cache_pb2, decode_pb2, store_pb2


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; `role` in the template's words: system, user, assistant."""

    role: str
    content: str


# text, token ids, or a conversation
Prompt = str | Sequence[int] | Sequence[Message]


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """How the prompt's cache is compacted: a name the server knows, and its parameters."""

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
    """How tokens are chosen. `temperature` 0 is greedy; a 0 elsewhere leaves that out.

    `presence_penalty` and `frequency_penalty` count generated tokens, `repetition_penalty` the
    prompt's too. `n` answers are made from one prompt, answer i with seed + i. `logprobs` asks for
    the log-probability of each token and of so many of the likeliest.
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

    `policy`: a name or a `Policy`; absent, the server's default. `codec`: how the kept rows are
    stored: "model", "fp8", "int8", "int4", or two of these for keys and values, "int8/int4";
    absent, as the model computes them. `sampling`: absent, greedy.
    `max_tokens`: absent or 0, the server's default. `stop`: texts that end the answer.
    `stop_token_ids`: tokens that do, beside the model's own. `ignore_eos`: go on after those.
    `report_heads`: add what every KV head kept to the result. `session_id`: go on from this
    session; a chat prompt then has the messages since its last answer. `keep_session_seconds`: keep
    what was generated as a session, for so long without use. `cache_handle`: the prompt follows
    this stored cache, see `CacheCalls`.
    """

    policy: Policy | str
    codec: str
    sampling: Sampling
    max_tokens: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    report_heads: bool
    session_id: str
    keep_session_seconds: float
    cache_handle: str


def generate_request(
    prompt: Prompt, **options: Unpack[GenerateOptions]
) -> decode_pb2.GenerateRequest:
    """ValueError or TypeError where a value cannot even be written down."""
    unknown = options.keys() - GenerateOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"generate() got an unexpected keyword argument {min(unknown)!r}")
    own_messages = ("policy", "codec", "sampling")
    plain = {name: value for name, value in options.items() if name not in own_messages}
    request = decode_pb2.GenerateRequest(**cast(Any, plain))
    request.policy.CopyFrom(_policy(options.get("policy") or ""))
    if options.get("codec"):
        request.codec.CopyFrom(_codec(options["codec"]))
    request.sampling.CopyFrom((options.get("sampling") or Sampling()).to_proto())
    _set_prompt(request, prompt)
    return request


def keep_request(
    context: Prompt, policy: Policy | str, codec: str, keep_for_seconds: float
) -> store_pb2.KeepCacheRequest:
    """ValueError or TypeError where a value cannot even be written down."""
    request = store_pb2.KeepCacheRequest(keep_for_seconds=keep_for_seconds, policy=_policy(policy))
    if codec:
        request.codec.CopyFrom(_codec(codec))
    _set_prompt(request, context)
    return request


def _codec(spelling: str) -> cache_pb2.RowCodec:
    """Of "int8", or "int8/int4" for keys and values."""
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
        # protobuf itself refuses what is no token id
        request.tokens.CopyFrom(decode_pb2.TokenIds(ids=cast(Sequence[int], prompt)))
