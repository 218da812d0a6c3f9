"""`headwise tune`: the best setting within a bound, on the user's own model and text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.commands.tune_options import TuneOptions, tune_options
from services.runtime.process.configuration import build, options_of
from services.runtime.process.options import ModelOptions

if TYPE_CHECKING:
    from services.evaluation.settings import Setting
    from services.evaluation.tuning import Family, Trials, Tried


@click.command()
@tune_options
@options_of(ModelOptions)
def tune(options: TuneOptions, **values: object) -> None:
    """Find the smallest cache within --max-kl, or the closest one within --max-bytes.

    A setting is measured as it is served: the retention rules are applied while the continuation of
    each text is fed.
    """
    from kvstore.errors import KVStoreError
    from services.runtime.model.model_errors import ModelError

    if (options.max_kl is None) == (options.max_bytes is None):
        raise click.UsageError("give either --max-kl or --max-bytes")
    try:
        found = _search(options, build(ModelOptions, values))
    except (ModelError, KVStoreError, OSError, UnicodeError) as error:
        raise click.ClickException(str(error)) from error
    if found is None:
        raise click.ClickException("no setting of this family is within the bound")
    _show(found)


def _search(options: TuneOptions, model: ModelOptions) -> Tried | None:
    from services.evaluation.bench import open_bench
    from services.evaluation.plan import texts
    from services.evaluation.settings import parse_written
    from services.evaluation.tuning import Trials, family_of

    family = family_of(*parse_written(options.policy))
    bench = open_bench(model, [family.at(1.0)])
    text = options.text_file.read_text() if options.text_file else ""
    sizes = options.context, options.fed, options.passages
    passages = [passage for _, passage in texts(bench.served, text, *sizes)]
    return _bisect(options, family, Trials(bench, passages), len(passages) * options.fed)


def _bisect(options: TuneOptions, family: Family, trials: Trials, tokens: int) -> Tried | None:
    from services.evaluation.tuning import STEPS, best_within_bytes, smallest_within_kl

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task("tokens", total=(STEPS + 1) * tokens)

        def measure(setting: Setting) -> Tried:
            tried = trials.measure(setting, lambda: progress.advance(bar))
            progress.console.print(_line(tried), soft_wrap=True)
            return tried

        if options.max_kl is not None:
            return smallest_within_kl(family, options.max_kl, measure)
        assert options.max_bytes is not None
        return best_within_bytes(family, options.max_bytes, measure)


def _line(tried: Tried) -> str:
    return f"KL {tried.kl:.4f}  bytes {tried.bytes:.3f}  {tried.setting.name}"


def _show(found: Tried) -> None:
    from kvstore.row_codecs import MODEL_ROWS

    policy, _, written = found.setting.name.partition("@")[0].partition(":")
    given = found.setting.policy.parameters()
    named = (pair.partition("=")[0] for pair in written.split(","))
    flags = " ".join(f"-p {key}={json.dumps(given[key])}" for key in named)
    if found.setting.codec != MODEL_ROWS:
        flags += f" --codec {found.setting.codec.name}"
    console = Console()
    console.print(f"found    {_line(found)}", soft_wrap=True)
    console.print(f"use it   headwise generate --policy {policy} {flags}", soft_wrap=True)
