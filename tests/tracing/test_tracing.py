"""One trace per request, from the client through decode into prefill, and nothing said in it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from headwise import AsyncClient, Client, HeadwiseError, tracing
from services.runtime.process.trace_export import exported_spans
from tests.conftest import Pair, running_pair
from tests.observe import wait_until
from tests.tracing.collector import Collector, collecting

_PROMPT = "zanzibar quixotic " * 8
_GENERATE = "headwise.v1.DecodeService/Generate"
_PREFILL = "headwise.v1.PrefillService/Prefill"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced_pair(tiny_model: Path, collector: Collector) -> Iterator[Pair]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        # OTLP's exporter waits five seconds by default
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with running_pair(str(tiny_model)) as pair:
            yield pair


@pytest.fixture(scope="module")
def _provider() -> TracerProvider:
    """The client's own; OpenTelemetry lets a process set one once."""
    provider = TracerProvider()
    trace.set_tracer_provider(provider)
    return provider


@pytest.fixture
def client_spans(_provider: TracerProvider) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    processor = SimpleSpanProcessor(exporter)
    _provider.add_span_processor(processor)
    yield exporter
    processor.shutdown()


def _ended(spans: InMemorySpanExporter) -> ReadableSpan:
    wait_until(lambda: len(spans.get_finished_spans()) == 1, 5, "the client's span")
    (span,) = spans.get_finished_spans()
    return span


@pytest.mark.processes
def test_a_request_is_one_trace_through_both_services(
    traced_pair: Pair, collector: Collector, client_spans: InMemorySpanExporter
) -> None:
    with Client(traced_pair[1].target) as client:
        client.generate(_PROMPT, max_tokens=3, ignore_eos=True, request_id="r-42").text()
    root = _ended(client_spans)
    assert (root.name, root.attributes["rpc.response.status_code"]) == (_GENERATE, "OK")
    trace_id = root.context.trace_id
    wait_until(lambda: len(collector.of_trace(trace_id)) == 6, 10, "six spans of the services")
    spans = collector.of_trace(trace_id)
    parents = {
        ("headwise-decode", _GENERATE): root.context.span_id.to_bytes(8, "big"),
        ("headwise-decode", "admit"): spans["headwise-decode", _GENERATE].span_id,
        ("headwise-decode", "pull"): spans["headwise-decode", _GENERATE].span_id,
        ("headwise-decode", "answer"): spans["headwise-decode", _GENERATE].span_id,
        ("headwise-prefill", _PREFILL): spans["headwise-decode", "pull"].span_id,
        ("headwise-prefill", "compute"): spans["headwise-prefill", _PREFILL].span_id,
    }
    assert {key: span.parent_span_id for key, span in spans.items()} == parents
    for span in spans.values():
        assert span.status.code != 2
        text = str(span)
        assert "zanzibar" not in text
        assert "quixotic" not in text
    for service in ("headwise-decode", _GENERATE), ("headwise-prefill", _PREFILL):
        assert "r-42" in str(spans[service])


@pytest.mark.processes
def test_a_failure_is_marked_and_its_text_is_not_kept(
    traced_pair: Pair, collector: Collector, client_spans: InMemorySpanExporter
) -> None:
    with Client(traced_pair[1].target) as client, pytest.raises(HeadwiseError):
        client.generate(_PROMPT, policy="xylograph").text()
    root = _ended(client_spans)
    assert root.status.status_code is trace.StatusCode.ERROR
    assert root.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    wait_until(lambda: len(collector.of_trace(root.context.trace_id)) == 4, 10, "the spans")
    spans = collector.of_trace(root.context.trace_id)
    assert {span.status.code for span in spans.values() if span.name != "admit"} == {2}
    for span in spans.values():
        assert not span.events
        assert "xylograph" not in str(span)


@pytest.mark.processes
def test_the_asyncio_client_begins_a_trace_too_and_a_cancelled_one_says_so(
    traced_pair: Pair, client_spans: InMemorySpanExporter
) -> None:
    async def ask_and_leave() -> None:
        async with AsyncClient(traced_pair[1].target) as client:
            generation = client.generate(_PROMPT, max_tokens=500, ignore_eos=True)
            async for _ in generation:
                break
            generation.cancel()
            await asyncio.sleep(0.2)

    asyncio.run(ask_and_leave())
    root = _ended(client_spans)
    assert root.attributes["rpc.response.status_code"] == "CANCELLED"


def test_without_an_endpoint_nothing_is_set_up() -> None:
    before = trace.get_tracer_provider()
    with exported_spans("x", {}):
        assert trace.get_tracer_provider() is before


def test_without_the_extra_a_warning_names_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    before = trace.get_tracer_provider()
    with exported_spans("x", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}):
        assert trace.get_tracer_provider() is before
    assert "headwise[tracing]" in caplog.text


def test_without_the_api_calls_carry_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "PRESENT", False)
    assert tracing.begin_call("m", "r") == ((), None)
    assert tracing.outgoing() == ()
    with tracing.server_span("m", (), "r"), tracing.span("x", n=1):
        tracing.annotate({"a": 1}, failed=True)
