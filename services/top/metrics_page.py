"""One reading of a service's /metrics."""

from __future__ import annotations

import dataclasses
import http.client
import time
import urllib.request
from collections.abc import Sequence

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from headwise.proxies import is_local

_TIMEOUT_SECONDS = 5.0
# a decode that has served all head classes of 60 layers gives 60 KiB
_MOST_BYTES = 4 << 20


class NotReadable(Exception):
    """Raised if an address serves no Headwise metrics; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class MetricsPage:
    """All samples, and when they were read in seconds of the monotonic clock."""

    at_seconds: float
    samples: Sequence[Sample]

    def total(self, name: str, **labels: str) -> float:
        """The sum over all samples of that name with these labels; 0 where there is none."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def labels_of(self, name: str) -> dict[str, str] | None:
        """The labels of the first sample of that name."""
        return next((sample.labels for sample in self.samples if sample.name == name), None)


def read_metrics(address: str) -> MetricsPage:
    """Read HOST:PORT. Raises `NotReadable`."""
    try:
        url = f"http://{address}/metrics"
        # a proxy of the environment would be asked for loopback as well
        handlers = [urllib.request.ProxyHandler({})] if is_local(address) else []
        with urllib.request.build_opener(*handlers).open(url, timeout=_TIMEOUT_SECONDS) as answer:
            text = answer.read(_MOST_BYTES).decode()
        families = text_string_to_metric_families(text)
        samples = [sample for family in families for sample in family.samples]
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise NotReadable(f"no metrics there ({reason}): give the service's --metrics-port") from (
            error
        )
    except ValueError as error:
        raise NotReadable("what answers there are no metrics") from error
    page = MetricsPage(time.monotonic(), samples)
    if page.labels_of("headwise_model_info") is None:
        raise NotReadable("these are not the metrics of a Headwise service")
    return page
