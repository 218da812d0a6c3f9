"""Export of spans by OTLP over gRPC, configured by OpenTelemetry's own variables.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) names the collector and
turns the export on; `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG` choose the traced share.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

from headwise.version import __version__

log = logging.getLogger("headwise.tracing")

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
SAMPLER, SAMPLER_ARGUMENT = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_ENDPOINTS = (ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@contextlib.contextmanager
def exported_spans(service: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Export spans within this block, and at its end those that are still queued.

    An unreachable collector, or a missing extra `tracing`, loses spans and fails no request.
    """
    if not any(environment.get(name) for name in _ENDPOINTS):
        yield
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        # the variable may be set for every process of a cluster
        log.warning("%s needs the extra tracing: pip install 'headwise[tracing]'", ENDPOINT)
        yield
        return
    # the sampler, the endpoint and its certificates are read from the environment
    provider = TracerProvider(
        resource=Resource.create({"service.name": service, "service.version": __version__})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()
