"""Every part, measured on a tiny model, in one page that needs nothing else."""

import pytest

from kvstore.calibration import Calibration
from services.evaluation.cases import Bench
from services.evaluation.cell_log import CellLog
from services.evaluation.plan import PARTS, Plan, Sizes
from services.evaluation.report import as_document, as_html
from services.evaluation.run import evaluate, fitting
from services.evaluation.settings import parse_settings
from services.evaluation.summary import summarise

SIZES = Sizes(
    contexts=(64, 96),
    passages=1,
    continuation_tokens=4,
    needle_lengths=(200, 300),
    needle_depths=(0.2, 0.8),
    task_tokens=600,
    task_cases=1,
    long_prompt=64,
    long_texts=1,
    generated=60,
)
SETTINGS = parse_settings(["full", "streaming_llm:budget=.3"])


@pytest.fixture(scope="module")
def measured(served, tmp_path_factory):
    log = CellLog(tmp_path_factory.mktemp("log") / "cells.jsonl", served.fingerprint)
    cases = Plan(served, SIZES).cases(PARTS)
    seen = dict.fromkeys(PARTS, 0)

    def count(part, cells):
        seen[part] += cells

    evaluate(Bench(served, Calibration()), cases, SETTINGS, log, count)
    assert seen == {part: 2 * sum(case.part == part for case in cases) for part in PARTS}
    return summarise(cases, SETTINGS, log)


def test_bytes_and_time_stand_beside_every_quality(measured):
    assert {row.part for row in measured.rows} == set(PARTS)
    for row in measured.rows:
        assert row.values["kept_bytes"] > 0
        assert row.values["prefill_seconds"] > 0
        assert (row.values["rows"] == 1) == (row.setting == "full")


def test_the_full_cache_differs_from_itself_in_nothing(measured):
    forced = [row for row in measured.rows if row.part in ("forced", "long")]
    for row in forced:
        for what in ("kl", "kept_kl"):
            if row.setting == "full":
                assert row.values[what] == pytest.approx(0, abs=1e-5)
            else:
                assert row.values[what] > 1e-3
    (full, _) = measured.courses
    assert len(full.ruled) == len(full.kept) == 2


def test_needles_are_on_a_grid(measured):
    for grid in measured.grids:
        assert (grid.lengths, grid.depths) == ((200, 300), (0.2, 0.8))
        assert all(score in (0, 1) for line in grid.scores for score in line)


def test_the_page_needs_nothing_else_and_begins_with_the_frontier(measured):
    page = as_html(measured, {"model": "<tiny>"})
    assert "src=" not in page
    assert "<link" not in page
    assert "&lt;tiny&gt;" in page
    assert page.index("<svg") < page.index("<table")
    # two contexts' frontiers, the needles' maps and the course of the long text
    assert page.count("<svg") == 4
    for row in measured.rows:
        assert row.setting in page
        assert row.group in page
    assert as_document(measured, {})["left_out"] == 0


def test_cases_beyond_the_models_context_are_left_out(served):
    sizes = Sizes(contexts=(64, served.context_tokens), passages=1, continuation_tokens=4)
    cases = Plan(served, sizes).cases(["forced"])
    assert [case.group for case in fitting(cases, served)] == ["64 + 4 tokens"]
