"""`headwise eval`: the cost of policies in quality, bytes and time."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.commands.eval_options import EvalOptions, eval_options
from services.runtime.process.configuration import build, options_of
from services.runtime.process.options import ModelOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.evaluation.cases import Bench, Case
    from services.evaluation.cell_log import CellLog
    from services.evaluation.settings import Setting
    from services.evaluation.summary import Summary


@click.command("eval")
@eval_options
@options_of(ModelOptions)
def evaluate_policies(options: EvalOptions, **values: object) -> None:
    """Measure the cost of policies: quality on several kinds of text, bytes, and time.

    Every finished measurement is a line of OUT/cells.jsonl. Run again after an interruption, the
    same command takes the missing measurements and rewrites the report.
    """
    from kvstore.errors import KVStoreError
    from services.runtime.model.model_errors import ModelError

    try:
        _run(options, build(ModelOptions, values))
    except (ModelError, KVStoreError, OSError, UnicodeError) as error:
        raise click.ClickException(str(error)) from error


def _require_pictures() -> None:
    """Raise `click.ClickException` without matplotlib, before hours of measurements."""
    if importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException("the report needs the eval extra: pip install 'headwise[eval]'")


def _run(options: EvalOptions, model: ModelOptions) -> None:
    from services.evaluation.bench import open_bench
    from services.evaluation.cell_log import CellLog
    from services.evaluation.plan import QUICK, Plan, Sizes
    from services.evaluation.run import fitting
    from services.evaluation.settings import parse_settings
    from services.evaluation.summary import summarise

    _require_pictures()
    settings = parse_settings(options.written)
    sizes = QUICK if options.quick else Sizes()
    if options.contexts:
        sizes = dataclasses.replace(sizes, contexts=options.contexts)
    if options.passages:
        sizes = dataclasses.replace(sizes, passages=options.passages)
    bench = open_bench(model, settings)
    log = CellLog(options.out / "cells.jsonl", bench.served.fingerprint)
    text = options.text_file.read_text() if options.text_file else ""
    planned = Plan(bench.served, sizes, text).cases(options.parts)
    cases = fitting(planned, bench.served)
    _measure(bench, cases, settings, log)
    _write(options.out, bench, summarise(cases, settings, log, len(planned) - len(cases)))


def _measure(
    bench: Bench, cases: Sequence[Case], settings: Sequence[Setting], log: CellLog
) -> None:
    from services.evaluation.run import evaluate

    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        bars = {
            part: progress.add_task(
                part, total=sum(case.part == part for case in cases) * len(settings)
            )
            for part in dict.fromkeys(case.part for case in cases)
        }
        evaluate(
            bench, cases, settings, log, lambda part, cells: progress.advance(bars[part], cells)
        )


def _write(out: pathlib.Path, bench: Bench, summary: Summary) -> None:
    import json

    from services.evaluation.conditions import conditions
    from services.evaluation.report import as_document, as_html

    measured_on = conditions(bench.served)
    (out / "figures.json").write_text(
        json.dumps(as_document(summary, measured_on), indent=2) + "\n"
    )
    (out / "report.html").write_text(as_html(summary, measured_on))
    Console().print(f"report   {out / 'report.html'}", soft_wrap=True)
