"""The fidelity benchmark's results as tables for people and as named figures."""

from __future__ import annotations

from collections.abc import Iterable

import rich.box
from rich.table import Table

from benchmarks.fidelity_results import Report
from services.evaluation.forced_runs import Measured

Figure = dict[str, float | str | None]

_FULL = "the full cache"
_DENSE = "the dense cache"
# what a figure should be at most; FastGen's rows should also be at least .55
_TARGETS = {"fastgen_t95_rows": 0.75, "fastgen_t95_kl": 0.02}
_QUARTERS = 4


def tables(report: Report) -> list[Table]:
    """One table a part."""
    return [
        measured_table("Prompt compacted, every later token kept", report.later_kept),
        measured_table("Rules applied after every token", report.rules_on),
        _by_quarter("A longer continuation, rules applied after every token", report.long),
        _by_quarter("The same, every later token kept", report.long_kept),
        measured_table(
            "A continuation that copies from the prompt, later tokens kept", report.copying
        ),
        keys_table(report.keys),
    ]


def figures(report: Report) -> dict[str, Figure]:
    """Return the figures by name; `target` is None if there is none."""
    found: dict[str, Figure] = {}
    parts = {"": report.later_kept, "_decoding": report.rules_on, "_copying": report.copying}
    for part, results in parts.items():
        for one in results:
            found |= measured_figures(one.name + part, one)
    for part, results in {"_long": report.long, "_long_kept": report.long_kept}.items():
        for one in results:
            found |= _quarter_figures(one.name + part, one)
    return found | key_figures(report.keys)


def key_figures(keys: Iterable[tuple[str, int, int]]) -> dict[str, Figure]:
    """Return the figures of pass keys; `keys` holds (setting, found, cases)."""
    names = ((f"{setting}_pass_keys", count / cases) for setting, count, cases in keys)
    return {name: _figure(name, share, "ratio", "all hidden pass keys") for name, share in names}


def _quarter_figures(name: str, one: Measured) -> dict[str, Figure]:
    kept = _figure(f"{name}_final_rows", one.final_rows, "ratio", _DENSE)
    return {f"{name}_final_rows": kept} | {
        f"{name}_quarter{number}_kl": _figure(f"{name}_quarter{number}_kl", kl, "nats", _FULL)
        for number, kl in enumerate(_quarters(one), 1)
    }


def measured_figures(name: str, one: Measured) -> dict[str, Figure]:
    """All that was measured of one setting, each under `name` and what it is."""
    values = (
        ("rows", one.rows, "ratio", _DENSE),
        ("final_rows", one.final_rows, "ratio", _DENSE),
        ("bytes", one.bytes, "ratio", _DENSE),
        ("perplexity", one.divergence.perplexity, "perplexity", _FULL),
        ("kl", float(one.divergence.kl.mean()), "nats", _FULL),
        ("top1", float(one.divergence.agreed.mean()), "ratio", _FULL),
    )
    return {
        f"{name}_{what}": _figure(f"{name}_{what}", value, unit, against)
        for what, value, unit, against in values
    }


def _figure(name: str, value: float, unit: str, against: str) -> Figure:
    return {"value": value, "unit": unit, "against": against, "target": _TARGETS.get(name)}


def measured_table(title: str, results: Iterable[Measured]) -> Table:
    """A row a setting."""
    columns = ("rows", "end rows", "bytes", "ppl", "KL", "top-1")
    table = _empty(title, ("setting", *columns))
    for one in results:
        table.add_row(
            one.name,
            f"{one.rows:.3f}",
            f"{one.final_rows:.3f}",
            f"{one.bytes:.3f}",
            f"{one.divergence.perplexity:.2f}",
            f"{float(one.divergence.kl.mean()):.4f}",
            f"{float(one.divergence.agreed.mean()):.3f}",
        )
    return table


def _by_quarter(title: str, results: Iterable[Measured]) -> Table:
    columns = ("rows", "end rows", "KL 1st", "2nd", "3rd", "4th quarter")
    table = _empty(title, ("setting", *columns))
    for one in results:
        quarters = (f"{kl:.4f}" for kl in _quarters(one))
        table.add_row(one.name, f"{one.rows:.3f}", f"{one.final_rows:.3f}", *quarters)
    return table


def keys_table(keys: Iterable[tuple[str, int, int]]) -> Table:
    """Return a table of pass keys; `keys` holds (setting, found, cases)."""
    table = _empty("Pass keys asked for after compression", ("setting", "found", "hidden"))
    for name, found, cases in keys:
        table.add_row(name, str(found), str(cases))
    return table


def _quarters(one: Measured) -> list[float]:
    return [float(part.mean()) for part in one.divergence.kl.tensor_split(_QUARTERS)]


def _empty(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=rich.box.MARKDOWN)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table
