"""The generated reference is what the code says."""

from __future__ import annotations

from checks.error_reasons import MEANINGS
from checks.reference import metrics, raised_reasons, stale


def test_the_committed_pages_are_what_the_code_gives() -> None:
    assert stale() == [], "run python -m checks.reference"


def test_every_reason_has_a_meaning_and_every_meaning_a_reason() -> None:
    assert set(raised_reasons()) == set(MEANINGS)


def test_metrics_are_found() -> None:
    names = {line.exposed_name for line in metrics()}
    assert {"headwise_requests_total", "headwise_store_hits_total", "headwise_serving"} <= names
