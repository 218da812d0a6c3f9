"""The part of configuration that says where spans go."""

from __future__ import annotations

import dataclasses

from services.runtime.process.configuration import setting


@dataclasses.dataclass(frozen=True, slots=True)
class TraceOptions:
    """OpenTelemetry's own OTEL_* variables say the rest, as headers and certificates."""

    trace_endpoint: str = setting(
        "",
        "OTLP collector for spans, as http://HOST:4317, or https://; needs the extra tracing. "
        "Empty for none.",
    )
    trace_ratio: float = setting(
        1.0,
        "Share of requests traced, of those whose caller has not decided it.",
        minimum=0,
        maximum=1,
    )
