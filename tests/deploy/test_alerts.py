"""Rules are valid, each alert has been seen firing and silent, and each has its paragraph."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from deploy.observe.__main__ import declared_metrics
from deploy.observe.check import metrics_in
from tests.parts import require_program

_ROOT = Path(__file__).parents[2]
_PROMETHEUS = _ROOT / "deploy" / "prometheus"
_CASES = Path(__file__).with_name("alerts_test.yaml")


def _promtool(*arguments: object) -> None:
    promtool = require_program("promtool", "apt-get install prometheus")
    done = subprocess.run([promtool, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((_PROMETHEUS / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_rules_and_configuration_are_valid() -> None:
    _promtool("check", "config", _PROMETHEUS / "prometheus.yaml")


def test_alerts_fire_where_they_should_and_only_there() -> None:
    _promtool("test", "rules", _CASES)


def test_each_alert_is_seen_firing_and_silent() -> None:
    cases = [
        case
        for group in yaml.safe_load(_CASES.read_text())["tests"]
        for case in group.get("alert_rule_test", [])
    ]
    alerts = {rule["alert"] for rule in _rules("alerts.yaml")}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_rules_ask_for_declared_metrics() -> None:
    for rule in _rules("alerts.yaml") + _rules("recording.yaml"):
        assert metrics_in(rule["expr"]) <= declared_metrics()


def test_each_recording_is_read_or_checked() -> None:
    used = "".join(path.read_text() for path in (_ROOT / "deploy").rglob("*.json"))
    used += _CASES.read_text() + (_PROMETHEUS / "alerts.yaml").read_text()
    for rule in _rules("recording.yaml"):
        assert rule["record"] in used


def test_the_runbook_has_a_paragraph_an_alert_and_no_other() -> None:
    headings = [
        line.removeprefix("## ")
        for line in (_ROOT / "docs" / "runbook.md").read_text().splitlines()
        if line.startswith("## ")
    ]
    alerts = _rules("alerts.yaml")
    assert headings == [rule["alert"] for rule in alerts]
    for rule in alerts:
        url = urlsplit(rule["annotations"]["runbook_url"])
        # the page of mkdocs, with directory URLs, and the anchor that it makes of a heading
        assert (url.scheme, url.path, url.fragment) == ("https", "/runbook/", rule["alert"].lower())
        assert rule["labels"]["severity"] in {"warning", "critical"}
