"""The generated reference is what the code says."""

from __future__ import annotations

import pathlib
import re

from checks.error_reasons import MEANINGS
from checks.reference import metrics, raised_reasons, stale

ROOT = pathlib.Path(__file__).parents[2]


def test_the_committed_pages_are_what_the_code_gives() -> None:
    assert stale() == [], "run python -m checks.reference"


def test_every_reason_has_a_meaning_and_every_meaning_a_reason() -> None:
    assert set(raised_reasons()) == set(MEANINGS)


def test_metrics_are_found() -> None:
    names = {line.exposed_name for line in metrics()}
    assert {"headwise_requests_total", "headwise_store_hits_total", "headwise_serving"} <= names


def test_metrics_and_reasons_that_the_documents_name_exist() -> None:
    exposed = {line.exposed_name for line in metrics()}
    exposed |= {
        f"{line.name}_{part}"
        for line in metrics()
        if line.kind == "histogram"
        for part in ("sum", "count", "bucket")
    }
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        # a colon before or behind makes the name of a recording rule
        named = set(re.findall(r"(?<![:\w])headwise_[a-z_]+(?![:\w])", text))
        assert named <= exposed, page
        reasons = set(re.findall(r"`((?:LEASE|SESSION|CACHE|STORE|TENANT|TOKEN)_[A-Z_]+)`", text))
        assert reasons <= set(MEANINGS), page
