"""Sends spans to a collector."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from headwise.version import __version__
from services.runtime.process.serve_error import ServeError
from services.runtime.process.trace_options import TraceOptions

_EXTRA = "--trace-endpoint needs the extra tracing: pip install 'headwise[tracing]'"


@contextlib.contextmanager
def exported_spans(options: TraceOptions, service: str) -> Iterator[None]:
    """Within this block spans are sent; what is left of them goes at its end.

    A collector that is away costs spans, never a request.
    """
    if not options.trace_endpoint:
        yield
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError as error:
        raise ServeError(_EXTRA) from error
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(options.trace_ratio),
        resource=Resource.create({"service.name": service, "service.version": __version__}),
    )
    exporter = OTLPSpanExporter(endpoint=options.trace_endpoint)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()
