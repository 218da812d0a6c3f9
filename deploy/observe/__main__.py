"""Starts both services and Prometheus on loopback, drives load, shows what each panel shows."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

import click
from prometheus_client import REGISTRY
from rich.console import Console
from rich.table import Table

from deploy.observe.check import Interval, Seen, look
from deploy.observe.draw import draw_dashboards
from deploy.observe.load import drive
from deploy.observe.prometheus import PrometheusFailed, running_prometheus
from services.demo.processes import ServiceFailed, running_service
from services.prefill.store.store_watch import StoreCollector
from services.runtime.process import metrics

# what Prometheus needs to see the last of the load
_SETTLE_SECONDS = 3.0


@click.command()
@click.option("--model", default="smollm2", help="Model to serve.", show_default=True)
@click.option("--seconds", default=60.0, help="How long to drive load.", show_default=True)
@click.option("--words", default=200, help="Most words of a prompt.", show_default=True)
@click.option(
    "--pictures", type=click.Path(path_type=pathlib.Path), help="Folder for a picture a dashboard."
)
def main(model: str, seconds: float, words: int, pictures: pathlib.Path | None) -> None:
    """Show that every panel of every dashboard has data. Ends with 1 if one has none."""
    console = Console(width=120)
    try:
        seen = observe(model, seconds, words, console)
    except (PrometheusFailed, ServiceFailed) as error:
        raise click.ClickException(str(error)) from error
    console.print(_table(seen))
    if pictures:
        draw_dashboards(seen, pictures)
    empty = [one for one in seen if not one.series]
    for one in empty:
        console.print(f"no data: {one.dashboard.title} › {one.panel.title}: {one.target.expr}")
    sys.exit(bool(empty))


def observe(model: str, seconds: float, words: int, console: Console) -> list[Seen]:
    """Everything from the first process started to the last stopped."""
    with contextlib.ExitStack() as stack:
        console.print("starting prefill, decode and Prometheus on loopback")
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="headwise-store-"))
        arguments = ["--model", model, "--store-disk", folder]
        prefill = stack.enter_context(running_service("prefill", arguments))
        arguments = ["--model", model, "--prefill", prefill.target, "--pool-bytes", str(64 << 20)]
        decode = stack.enter_context(running_service("decode", arguments))
        jobs = {
            f"headwise-{service.name}": f"127.0.0.1:{service.metrics_port}"
            for service in (prefill, decode)
        }
        prometheus = stack.enter_context(running_prometheus(jobs))
        console.print(f"load for {seconds:g} s; Prometheus is at {prometheus.url}")
        start = time.time()
        answered = drive(decode.target, seconds, most_words=words)
        time.sleep(_SETTLE_SECONDS)
        console.print(f"{answered} answers")
        return list(look(prometheus, Interval(start, time.time())))


def declared_metrics() -> frozenset[str]:
    """Names under which this version's metrics are exposed."""
    assert metrics.__name__, "importing the module declares them"
    return frozenset(
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in itertools.chain(REGISTRY.collect(), StoreCollector(dict).collect())
    )


def _table(seen: Sequence[Seen]) -> Table:
    table = Table("dashboard", "panel", "query", "series", "newest", "highest")
    for one in seen:
        title = one.dashboard.title.removeprefix("Headwise / ")
        series = str(len(one.series)) if one.series else "[red]none[/red]"
        table.add_row(title, one.panel.title, one.target.legend, series, *_figures(one))
    return table


def _figures(one: Seen) -> tuple[str, ...]:
    """The newest and the highest value of its first series."""
    values = [value for _, value in next(iter(one.series.values()), [])]
    return (f"{values[-1]:,.4g}", f"{max(values):,.4g}") if values else ()


if __name__ == "__main__":
    main()
