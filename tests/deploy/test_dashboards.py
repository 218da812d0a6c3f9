"""Dashboards are Grafana's own kind of JSON, up to date, and ask for metrics that exist."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from deploy.dashboards import DASHBOARDS
from deploy.dashboards.files import generated_files
from deploy.dashboards.panels import Panel
from deploy.observe.__main__ import declared_metrics
from deploy.observe.check import Interval, look, metrics_in, plain
from deploy.observe.load import drive
from deploy.observe.prometheus import running_prometheus
from tests.conftest import Pair
from tests.parts import part_is_missing, require_program

_ROOT = Path(__file__).parents[2]
_FILES = sorted((_ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
_PANELS = [panel for dashboard in DASHBOARDS for panel in dashboard.panels]
_TSC = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022", "--module", "esnext"]


@pytest.fixture(scope="module")
def schema() -> Path:
    """A folder with Grafana's types and a compiler, kept under build/ between runs."""
    npm = require_program("npm", "apt-get install nodejs npm")
    folder = _ROOT / "build" / "grafana-schema"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parent / "grafana" / "package.json", folder)
    if not (folder / "node_modules" / "typescript").exists():
        command = [
            npm,
            "install",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--no-package-lock",
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            part_is_missing(f"npm cannot install Grafana's types: {done.stderr}")
    return folder


def _compile(schema: Path, dashboards: dict[str, Any]) -> str:
    """Compile the dashboards against Grafana's types, and return what the compiler writes."""
    for name, dashboard in dashboards.items():
        text = 'import type { Dashboard } from "@grafana/schema";\nexport const it: Dashboard = '
        (schema / f"{name}.ts").write_text(text + json.dumps(dashboard) + ";\n")
    tsc = schema / "node_modules" / ".bin" / "tsc"
    files = [f"{name}.ts" for name in dashboards]
    command = [tsc, *_TSC, "--moduleResolution", "bundler", *files]
    return subprocess.run(command, cwd=schema, capture_output=True, text=True).stdout


def test_generated_files_are_what_their_sources_give() -> None:
    for path, text in generated_files().items():
        assert path.read_text() == text, f"{path.name} is stale: run `make dashboards`"


def test_grafanas_types_accept_the_dashboards_and_refuse_broken_ones(schema: Path) -> None:
    dashboards = {path.stem: json.loads(path.read_text()) for path in _FILES}
    assert len(dashboards) == 4
    assert _compile(schema, dashboards) == ""
    broken = json.loads(_FILES[0].read_text())
    broken["panels"][0]["gridPos"]["w"] = "wide"
    assert "TS2322" in _compile(schema, {"broken": broken})
    unknown = json.loads(_FILES[0].read_text()) | {"panel": []}
    assert "TS2353" in _compile(schema, {"unknown": unknown})


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_panels_lie_side_by_side_and_say_what_they_show(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"] == f"headwise-{path.stem}"
    names = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert names[:4] == ["datasource", "namespace", "model", "instance"]
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
        assert len(panel["description"]) > 10


@pytest.mark.parametrize("panel", _PANELS, ids=lambda panel: panel.title)
def test_a_panel_asks_for_declared_metrics_within_the_selection(panel: Panel) -> None:
    for target in panel.targets:
        assert metrics_in(target.expr) <= declared_metrics()
        selectors = target.expr.count("{")
        assert "$" not in plain(target.expr, 10)
        if "headwise:" not in target.expr:
            assert target.expr.count('namespace=~"$namespace"') == selectors > 0


@pytest.mark.processes
def test_every_panel_has_data_on_a_real_prometheus(tiny_pair: Pair) -> None:
    require_program("prometheus", "apt-get install prometheus")
    jobs = {service.name: f"127.0.0.1:{service.metrics_port}" for service in tiny_pair}
    with running_prometheus(jobs, scrape_seconds=0.5) as prometheus:
        start = time.time()
        assert drive(tiny_pair[1].target, 8, most_words=60)
        time.sleep(1)
        interval = Interval(start, time.time(), 0.5)
        seen = list(look(prometheus, interval))
    assert not [one.target.expr for one in seen if not one.series]
