"""Arguments of calls become messages unchanged; invalid values are refused before a call."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

import numpy
import pytest
from google.protobuf.json_format import MessageToDict

from headwise import AsyncClient, Client, Message, Policy, Sampling, Tls
from headwise.caches import AsyncCacheCalls, CacheCalls
from headwise.requests import (
    GenerateOptions,
    LeaseOptions,
    Prompt,
    generate_request,
    keep_request,
    renew_request,
)
from headwise.sessions import AsyncSessionCalls, SessionCalls
from headwise.v1 import decode_pb2


def _request(prompt: Prompt, **changes: Any) -> decode_pb2.GenerateRequest:
    arguments: dict[str, Any] = {
        "policy": None,
        "sampling": None,
        "max_tokens": 0,
        "stop": (),
        "stop_token_ids": (),
        "ignore_eos": False,
        "report_heads": False,
    }
    return generate_request(prompt, **(arguments | changes))


def test_prompts_of_every_kind() -> None:
    assert _request("text").text == "text"
    assert list(_request((3, 4)).tokens.ids) == [3, 4]
    assert list(_request(numpy.array([3, 4])).tokens.ids) == [3, 4]  # type: ignore[arg-type]
    chat = _request([Message("system", "be"), Message("user", "hi")]).chat
    assert [(m.role, m.content) for m in chat.messages] == [("system", "be"), ("user", "hi")]


def test_an_empty_prompt_keeps_its_kind() -> None:
    assert _request("").WhichOneof("prompt") == "text"
    assert _request([]).WhichOneof("prompt") == "tokens"


@pytest.mark.parametrize("prompt", [["text"], [1, "two"], [1.5], [None]])
def test_what_is_no_token_id_is_never_dropped(prompt: Any) -> None:
    with pytest.raises(TypeError):
        _request(prompt)


def _keywords() -> dict[str, Any]:
    """Every keyword of both clients' calls, and every field of their values, with its type."""
    found: dict[str, Any] = {}
    owners = (AsyncClient, Client, AsyncCacheCalls, AsyncSessionCalls, CacheCalls, SessionCalls)
    calls = [
        value
        for owner in owners
        for name, value in vars(owner).items()
        if callable(value) and (name == "__init__" or not name.startswith("_"))
    ]
    values = (GenerateOptions, LeaseOptions, Message, Policy, Sampling, Tls)
    for part in (*calls, *values):
        hints = typing.get_type_hints(part)
        found |= {
            f"{getattr(part, '__qualname__', part)}.{name}": kind for name, kind in hints.items()
        }
    return found


def _lists(element: type) -> set[str]:
    """The keywords that take a list of these."""
    wanted = {Sequence[element], list[element], tuple[element, ...]}  # type: ignore[valid-type]
    return {
        name.rsplit(".", 1)[1]
        for name, kind in _keywords().items()
        if not name.endswith(".return") and wanted & {kind, *typing.get_args(kind)}
    }


def test_a_text_where_several_are_wanted_is_one() -> None:
    # targets are no part of a request
    assert _lists(str) == {"stop", "target"}
    for given in ("END", ("END",), ["END"]):
        assert list(_request("x", stop=given).stop) == ["END"]
    with Client("127.0.0.1:1") as one, Client(["127.0.0.1:1"]) as same:
        assert one._connection.target == same._connection.target == "127.0.0.1:1"


@pytest.mark.parametrize("given", ["12", b"12", bytearray(b"12"), memoryview(b"12")])
def test_a_text_or_bytes_are_no_token_ids(given: Any) -> None:
    assert _lists(int) == {"stop_token_ids", "prompt", "context"}
    with pytest.raises(TypeError, match="stop_token_ids"):
        _request("x", stop_token_ids=given)
    if not isinstance(given, str):
        with pytest.raises(TypeError, match="prompt"):
            _request(given)
        with pytest.raises(TypeError, match="prompt"):
            keep_request(given, "", "", {"ttl_seconds": 1.0})


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": -1},
        {"max_tokens": 2**32},
        {"sampling": Sampling(top_k=-1)},
        {"sampling": Sampling(seed=-1)},
        {"stop_token_ids": [-1]},
    ],
)
def test_numbers_that_the_contract_cannot_hold_are_value_errors(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        _request("x", **changes)


def test_a_seed_of_zero_is_not_an_absent_one() -> None:
    assert _request("x", sampling=Sampling(seed=0)).sampling.HasField("seed")
    assert not _request("x", sampling=Sampling()).sampling.HasField("seed")


def test_a_policy_by_name_and_with_parameters() -> None:
    assert _request("x", policy="full").policy.name == "full"
    assert _request("x").policy.name == ""
    policy = Policy("coverage", {"recovery": 0.9, "windows": [16, 32], "strict": True})
    sent = _request("x", policy=policy).policy
    assert MessageToDict(sent.parameters) == policy.parameters


def test_parameters_that_are_no_json_are_type_errors() -> None:
    with pytest.raises(TypeError, match="JSON"):
        Policy("full", {"x": object()}).to_proto()


def test_an_unknown_keyword_is_refused_even_if_the_message_has_such_a_field() -> None:
    with pytest.raises(TypeError, match="'text'"):
        generate_request("hello", text="other")  # type: ignore[call-arg]


def test_the_earlier_name_of_the_session_ttl_is_accepted_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="session_ttl_seconds"):
        request = generate_request("text", keep_session_seconds=5.0)  # type: ignore[misc]
    assert request == generate_request("text", session_ttl_seconds=5.0)


def test_both_names_of_one_keyword_are_refused() -> None:
    both: Any = {"keep_session_seconds": 5.0, "session_ttl_seconds": 6.0}
    with pytest.raises(TypeError, match="not both"):
        generate_request("text", **both)


def test_the_earlier_name_of_a_leases_ttl_is_accepted_with_a_warning() -> None:
    earlier: Any = {"keep_for_seconds": 5.0}
    with pytest.warns(DeprecationWarning, match="ttl_seconds"):
        kept = keep_request("text", "full", "", earlier)
    assert kept == keep_request("text", "full", "", {"ttl_seconds": 5.0})
    with pytest.warns(DeprecationWarning, match="ttl_seconds"):
        renewed = renew_request("handle", 0.0, earlier)
    assert renewed == renew_request("handle", 5.0, {})


def test_a_cache_is_kept_for_a_stated_time_and_unknown_keywords_are_refused() -> None:
    with pytest.raises(TypeError, match="ttl_seconds"):
        keep_request("text", "full", "", {})
    unknown: Any = {"seconds": 5.0}
    with pytest.raises(TypeError, match="seconds"):
        keep_request("text", "full", "", unknown)
    with pytest.raises(TypeError, match="seconds"):
        renew_request("handle", 0.0, unknown)


def test_messages_may_be_dicts() -> None:
    as_messages = generate_request([Message("user", "a"), Message("assistant", "b")])
    as_dicts = generate_request(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    )
    assert as_dicts == as_messages


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([{"role": "user"}], r"messages\[0\]"),
        ([Message("user", "a"), "b"], r"messages\[1\]"),
        ([{"role": "user", "content": ["a"]}], r"messages\[0\]\.content"),
        ({"role": "user", "content": "a"}, "a list of"),
        (Message("user", "a"), "a list of"),
        (b"text", "a list of"),
        (7, "a list of"),
    ],
)
def test_a_prompt_of_another_kind_is_named(prompt: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        generate_request(prompt)


def test_parameters_of_sampling_may_be_keywords() -> None:
    whole = generate_request("a", sampling=Sampling(0.5, top_k=3, seed=4, n=2))
    assert generate_request("a", temperature=0.5, top_k=3, seed=4, n=2) == whole
    with pytest.raises(TypeError, match="give temperature within sampling"):
        generate_request("a", sampling=Sampling(), temperature=0.5)
