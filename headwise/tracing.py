"""OpenTelemetry spans, made if its API is installed and recorded if its SDK is configured.

A span never holds the text of a prompt, an answer or an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

try:
    from opentelemetry import context, propagate, trace
except ImportError:  # the API comes with the tracing extra
    PRESENT = False
else:
    PRESENT = True

Attributes = Mapping[str, str | int | float | bool]
Metadata = tuple[tuple[str, str], ...]

_NAME = "headwise"
_SERVICE = {"rpc.system": "grpc"}


def outgoing() -> Metadata:
    """Return metadata that lets a call's server continue the current trace."""
    if not PRESENT:
        return ()
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple(carrier.items())


def begin_call(
    method: str, request_id: str | None
) -> tuple[Metadata, Callable[[str], None] | None]:
    """Begin a client's span around a call.

    Returns the call's metadata, and a function that ends the span with the name of the call's
    status; None if nothing records spans.
    """
    if not PRESENT:
        return (), None
    known = {"headwise.request_id": request_id} if request_id else {}
    span = trace.get_tracer(_NAME).start_span(
        method, kind=trace.SpanKind.CLIENT, attributes={**_SERVICE, **known}
    )
    if not span.is_recording():
        return outgoing(), None
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span))

    def end(code: str) -> None:
        span.set_attribute("rpc.response.status_code", code)
        if code != "OK":
            span.set_status(trace.StatusCode.ERROR)
        span.end()

    return tuple(carrier.items()), end


@contextlib.contextmanager
def server_span(
    method: str, metadata: Iterable[tuple[str, str | bytes]], request_id: str
) -> Iterator[None]:
    """Open a server's span around a call; it continues the caller's trace."""
    if not PRESENT:
        yield
        return
    carrier = {key: value for key, value in metadata if isinstance(value, str)}
    attributes = {**_SERVICE, "headwise.request_id": request_id}
    with _current(method, trace.SpanKind.SERVER, attributes, propagate.extract(carrier)):
        yield


@contextlib.contextmanager
def span(
    name: str, *, calls: bool = False, **attributes: str | int | float | bool
) -> Iterator[None]:
    """Open a span for a part of the work; `calls` marks a call of another service."""
    if not PRESENT:
        yield
        return
    kind = trace.SpanKind.CLIENT if calls else trace.SpanKind.INTERNAL
    named = {f"headwise.{key}": value for key, value in attributes.items()}
    with _current(name, kind, named, None):
        yield


def annotate(attributes: Attributes, *, failed: bool = False) -> None:
    """Add attributes to the current span; `failed` marks it as failed."""
    if PRESENT:
        current = trace.get_current_span()
        current.set_attributes(dict(attributes))
        if failed:
            current.set_status(trace.StatusCode.ERROR)


@contextlib.contextmanager
def _current(
    name: str, kind: trace.SpanKind, attributes: Attributes, parent: context.Context | None
) -> Iterator[None]:
    # the exception's text is not recorded, since it may quote a request
    with trace.get_tracer(_NAME).start_as_current_span(
        name,
        context=parent,
        kind=kind,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield
        except BaseException:
            current.set_status(trace.StatusCode.ERROR)
            raise
