"""Every invalid request is refused with status, reason and field, and changes nothing."""

from __future__ import annotations

import dataclasses
import uuid

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from headwise import Client, HeadwiseError, InvalidRequest, Policy, Refused
from headwise.errors import from_rpc_error
from headwise.v1 import decode_pb2, decode_pb2_grpc, prefill_pb2, prefill_pb2_grpc
from headwise.v1.cache_pb2 import ModelFingerprint
from headwise.v1.cache_pb2 import Policy as PolicyProto
from headwise.v1.decode_pb2 import ChatMessage, ChatMessages, GenerateRequest, Sampling, TokenIds
from headwise.v1.prefill_pb2 import PrefillRequest
from services.demo.processes import Service
from tests.conftest import Pair
from tests.observe import scrape, wait_until
from tests.tiny_model import CONTEXT, VOCABULARY

pytestmark = pytest.mark.processes

_NAN, _INFINITY = float("nan"), float("inf")
_RANGE = "PARAMETER_OUT_OF_RANGE"
_UINT32 = 2**32 - 1
_TOKENS = TokenIds(ids=[5, 9, 33])


def _asking(policy: PolicyProto | None = None, **sampling: float) -> GenerateRequest:
    """A good request but for what is given."""
    return GenerateRequest(tokens=_TOKENS, policy=policy, sampling=Sampling(**sampling))


def _policy(name: str, **parameters: object) -> PolicyProto:
    struct = Struct()
    for key, value in parameters.items():
        struct[key] = value
    return PolicyProto(name=name, parameters=struct)


# what is asked, and the reason and field of the INVALID_ARGUMENT it must end in
_INVALID = (
    {
        "no prompt": (GenerateRequest(), "EMPTY_PROMPT", "prompt"),
        "empty text": (GenerateRequest(text=""), "EMPTY_PROMPT", "text"),
        "no tokens": (GenerateRequest(tokens=TokenIds()), "EMPTY_PROMPT", "tokens.ids"),
        "no messages": (GenerateRequest(chat=ChatMessages()), "EMPTY_PROMPT", "chat.messages"),
        "unknown token": (
            GenerateRequest(tokens=TokenIds(ids=[5, VOCABULARY])),
            "UNKNOWN_TOKEN",
            "tokens.ids[1]",
        ),
        "absurd token": (
            GenerateRequest(tokens=TokenIds(ids=[_UINT32])),
            "UNKNOWN_TOKEN",
            "tokens.ids[0]",
        ),
        "prompt as long as the context": (
            GenerateRequest(tokens=TokenIds(ids=[5] * CONTEXT)),
            "PROMPT_TOO_LONG",
            "tokens.ids",
        ),
        "long text": (GenerateRequest(text="of " * 2 * CONTEXT), "PROMPT_TOO_LONG", "text"),
        "long chat": (
            GenerateRequest(
                chat=ChatMessages(messages=[ChatMessage(role="user", content="of " * 2 * CONTEXT)])
            ),
            "PROMPT_TOO_LONG",
            "chat.messages",
        ),
        "too many tokens to make": (
            GenerateRequest(tokens=_TOKENS, max_tokens=CONTEXT - 2),
            "SEQUENCE_TOO_LONG",
            "max_tokens",
        ),
        "absurdly many tokens to make": (
            GenerateRequest(tokens=_TOKENS, max_tokens=_UINT32),
            "SEQUENCE_TOO_LONG",
            "max_tokens",
        ),
        "unknown policy": (_asking(_policy("best")), "UNKNOWN_POLICY", "policy.name"),
        "unknown parameter of the default": (
            _asking(_policy("", x=1)),
            _RANGE,
            "policy.parameters.x",
        ),
        "unknown parameter": (_asking(_policy("full", x=1)), _RANGE, "policy.parameters.x"),
        "infinite recovery": (
            _asking(_policy("coverage", recovery=_INFINITY)),
            _RANGE,
            "policy.parameters",
        ),
        "recovery NaN": (_asking(_policy("coverage", recovery=_NAN)), _RANGE, "policy.parameters"),
        "rows in part": (_asking(_policy("fastgen", sinks=1.5)), _RANGE, "policy.parameters.sinks"),
        "no list": (_asking(_policy("coverage", windows=16)), _RANGE, "policy.parameters.windows"),
        "descending list": (
            _asking(_policy("coverage", windows=[32, 16])),
            _RANGE,
            "policy.parameters.windows",
        ),
        "no flag": (_asking(_policy("fastgen", strict=1)), _RANGE, "policy.parameters.strict"),
        "17 answers": (_asking(n=17), _RANGE, "sampling.n"),
        "21 logprobs": (_asking(logprobs=21), _RANGE, "sampling.logprobs"),
        "negative session time": (
            GenerateRequest(tokens=_TOKENS, keep_session_seconds=-1),
            _RANGE,
            "keep_session_seconds",
        ),
        "endless session": (
            GenerateRequest(tokens=_TOKENS, keep_session_seconds=_INFINITY),
            _RANGE,
            "keep_session_seconds",
        ),
        "negative temperature": (_asking(temperature=-0.1), _RANGE, "sampling.temperature"),
        "temperature NaN": (_asking(temperature=_NAN), _RANGE, "sampling.temperature"),
        "infinite temperature": (_asking(temperature=_INFINITY), _RANGE, "sampling.temperature"),
        "absurd temperature": (_asking(temperature=101), _RANGE, "sampling.temperature"),
        "negative top_p": (_asking(top_p=-0.5), _RANGE, "sampling.top_p"),
        "top_p above 1": (_asking(top_p=1.01), _RANGE, "sampling.top_p"),
        "top_p NaN": (_asking(top_p=_NAN), _RANGE, "sampling.top_p"),
        "too many stops": (GenerateRequest(tokens=_TOKENS, stop=["x"] * 17), _RANGE, "stop"),
        "empty stop": (GenerateRequest(tokens=_TOKENS, stop=["x", ""]), _RANGE, "stop[1]"),
        "too many stop ids": (
            GenerateRequest(tokens=_TOKENS, stop_token_ids=[1] * 65),
            _RANGE,
            "stop_token_ids",
        ),
        "unknown stop id": (
            GenerateRequest(tokens=_TOKENS, stop_token_ids=[1, VOCABULARY]),
            "UNKNOWN_TOKEN",
            "stop_token_ids[1]",
        ),
    }
    | {
        f"{name} {value!r}": (_asking(**{name: value}), _RANGE, f"sampling.{name}")
        for name, values in {
            "min_p": (-0.1, 1.1, _NAN),
            "presence_penalty": (-2.5, 2.5, _NAN),
            "frequency_penalty": (-2.5, 1e300, _NAN),
            "repetition_penalty": (-1.0, 0.01, 11.0, _NAN),
        }.items()
        for value in values
    }
    | {
        f"recovery {recovery!r} of {name}": (
            _asking(_policy(name, recovery=recovery)),
            _RANGE,
            "policy.parameters.recovery",
        )
        for name in ("fastgen", "coverage")
        for recovery in (0, -0.5, 1.0001, "0.9", True, None)
    }
)


def _refusal(pair: Pair, request: GenerateRequest) -> HeadwiseError:
    with grpc.insecure_channel(pair[1].target) as channel:
        call = decode_pb2_grpc.DecodeServiceStub(channel).Generate(request, timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    return from_rpc_error(caught.value)


def _require_healthy(pair: Pair) -> None:
    """Nothing is held any more, and a good request is answered."""
    url = pair[1].metrics_url
    wait_until(lambda: scrape(url)["headwise_sequences"] == 0, 2, "the sequences to leave")
    samples = scrape(url)
    assert samples["headwise_pool_pages{state=used}"] == 0
    assert samples["headwise_pool_pages{state=reserved}"] == 0
    with Client(pair[1].target) as client:
        assert client.generate([5, 9, 33], max_tokens=2).result.usage.completion_tokens >= 1


@pytest.mark.parametrize("what", _INVALID)
def test_a_bad_request_names_reason_and_field(tiny_pair: Pair, what: str) -> None:
    request, reason, field = _INVALID[what]
    error = _refusal(tiny_pair, request)
    assert isinstance(error, InvalidRequest)
    assert (error.reason, error.field) == (reason, field)
    assert error.message


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_short_prompt_is_checked_as_any_other(tiny_pair: Pair, tokens: int) -> None:
    """Decode asks prefill for nothing where the prompt is one token."""
    short = TokenIds(ids=_TOKENS.ids[:tokens])
    for what, (request, reason, field) in _INVALID.items():
        if request.tokens != _TOKENS or reason == "SEQUENCE_TOO_LONG":
            continue
        asked = GenerateRequest()
        asked.CopyFrom(request)
        asked.tokens.CopyFrom(short)
        error = _refusal(tiny_pair, asked)
        assert (error.code.name, error.reason, error.field) == (
            "INVALID_ARGUMENT",
            reason,
            field,
        ), what


@pytest.mark.parametrize("name", ["", "full", "balanced", "coverage"])
def test_a_prompt_of_one_token_with_a_good_policy_is_answered(tiny_pair: Pair, name: str) -> None:
    parameters = {"floor_rows": 8} if name == "" else {}
    with Client(tiny_pair[1].target) as client:
        policy = Policy(name, parameters)
        result = client.generate([5], policy=policy, max_tokens=2, ignore_eos=True).result
    assert result.usage.completion_tokens == 2


def test_extreme_but_meaningful_values_are_served(tiny_pair: Pair) -> None:
    request = GenerateRequest(
        tokens=_TOKENS,
        sampling=Sampling(temperature=1e-300, top_k=_UINT32, top_p=1e-300, seed=2**64 - 1),
        max_tokens=2,
    )
    with grpc.insecure_channel(tiny_pair[1].target) as channel:
        responses = list(decode_pb2_grpc.DecodeServiceStub(channel).Generate(request, timeout=20))
    assert responses[-1].result.usage.completion_tokens >= 1


def _prefill_refusal(pair: Pair, request: PrefillRequest) -> HeadwiseError:
    with grpc.insecure_channel(pair[0].target) as channel:
        call = prefill_pb2_grpc.PrefillServiceStub(channel).Prefill(request, timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    return from_rpc_error(caught.value)


@pytest.mark.parametrize(
    ("token_ids", "reason", "field"),
    [
        ([], "EMPTY_PROMPT", "token_ids"),
        ([5, VOCABULARY], "UNKNOWN_TOKEN", "token_ids[1]"),
        ([5] * (CONTEXT + 1), "PROMPT_TOO_LONG", "token_ids"),
    ],
)
def test_prefill_checks_its_tokens_itself(
    tiny_pair: Pair, token_ids: list[int], reason: str, field: str
) -> None:
    error = _prefill_refusal(tiny_pair, PrefillRequest(token_ids=token_ids))
    assert isinstance(error, InvalidRequest)
    assert (error.reason, error.field) == (reason, field)


@pytest.mark.parametrize("field", ["weights_digest", "tokenizer_digest", "dtype"])
def test_prefill_refuses_a_caller_of_another_model(tiny_pair: Pair, field: str) -> None:
    with Client(tiny_pair[1].target) as client:
        expected = client.describe().model.fingerprint
    other = ModelFingerprint(**(dataclasses.asdict(expected) | {field: "another"}))
    error = _prefill_refusal(tiny_pair, PrefillRequest(token_ids=[5], expected_model=other))
    assert isinstance(error, Refused)
    assert (error.reason, error.field) == ("FINGERPRINT_MISMATCH", field)


def test_both_services_answer_after_all_that(tiny_pair: Pair) -> None:
    for service in tiny_pair:
        assert service.process.poll() is None
        failures = scrape(service.metrics_url)
        assert not any("reason=INTERNAL" in name for name in failures)
    _require_healthy(tiny_pair)


def test_logs_carry_the_request_id_and_nothing_of_the_prompt(tiny_pair: Pair) -> None:
    request_id, secret = uuid.uuid4().hex, "xylophone quagmire"
    with Client(tiny_pair[1].target) as client:
        good = client.generate(secret, policy="coverage", max_tokens=3, request_id=request_id)
        answer = good.text()
        with pytest.raises(InvalidRequest):
            client.generate(
                secret, policy=Policy("coverage", {"recovery": 7}), request_id=request_id
            ).text()
    for service in tiny_pair:
        for end in (" OK ", " INVALID_ARGUMENT "):
            # a call's line is written just after the caller has its answer
            wait_until(lambda s=service, e=end: _logged(s, request_id, e), 5, f"a line with{end}")
        log = service.log.read_text()
        assert "xylophone" not in log
        assert "quagmire" not in log
        assert not answer.strip() or answer not in log


def _logged(service: Service, request_id: str, end: str) -> bool:
    lines = service.log.read_text().splitlines()
    return any(request_id in line and end in line for line in lines)


def test_a_long_request_id_is_cut_in_the_log(tiny_pair: Pair) -> None:
    with Client(tiny_pair[1].target) as client:
        client.generate([5, 9], max_tokens=1, request_id="q" * 500).text()
    wait_until(lambda: _logged(tiny_pair[1], "q" * 64, " OK "), 5, "the call's line")
    assert "q" * 65 not in tiny_pair[1].log.read_text()


def test_an_unknown_method_is_unimplemented(tiny_pair: Pair) -> None:
    with grpc.insecure_channel(tiny_pair[1].target) as channel:
        call = channel.unary_unary("/headwise.v1.DecodeService/Nothing")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_bytes_that_are_no_request_are_refused(tiny_pair: Pair) -> None:
    for service, method in zip(tiny_pair, ("Prefill", "Generate"), strict=True):
        name = f"headwise.v1.{method.replace('Generate', 'Decode')}Service"
        with grpc.insecure_channel(service.target) as channel, pytest.raises(grpc.RpcError):
            list(channel.unary_stream(f"/{name}/{method}")(b"\xff\xff", timeout=10))
    _require_healthy(tiny_pair)


def test_describe_takes_no_parameters_and_never_fails(tiny_pair: Pair) -> None:
    request = decode_pb2.DecodeServiceDescribeRequest()
    with grpc.insecure_channel(tiny_pair[1].target) as channel:
        stub = decode_pb2_grpc.DecodeServiceStub(channel)
        assert stub.Describe(request, timeout=10).limits.max_sequence_tokens == CONTEXT
    with grpc.insecure_channel(tiny_pair[0].target) as channel:
        described = prefill_pb2_grpc.PrefillServiceStub(channel).Describe(
            prefill_pb2.PrefillServiceDescribeRequest(), timeout=10
        )
    assert described.limits.max_prompt_tokens == CONTEXT


@pytest.mark.parametrize("mebibytes", [5, 15, 40])
def test_a_request_of_too_many_bytes_is_no_overload(tiny_pair: Pair, mebibytes: int) -> None:
    with Client(tiny_pair[1].target) as client, pytest.raises(InvalidRequest) as caught:
        client.generate("a" * (mebibytes << 20)).text()
    assert caught.value.reason == "REQUEST_TOO_LARGE"
    assert caught.value.retry_after_seconds is None
    with Client(tiny_pair[1].target) as client, pytest.raises(InvalidRequest) as caught:
        client.caches.keep("a" * (mebibytes << 20), ttl_seconds=5)
    assert caught.value.reason == "REQUEST_TOO_LARGE"
