"""A cache as a map: a row per layer, a cell per KV head, coloured by class, with the rows kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

# most kept to least: what reads everything stands out
_COLOURS = (
    ("full", "bold white on red"),
    ("frequent", "black on yellow"),
    ("local", "black on green"),
    ("punctuation", "black on cyan"),
    ("special", "white on blue"),
)
_OTHER = "white on bright_black"
# with more heads than this a layer's row counts no longer fit a terminal's 80 columns
_HEADS_WITH_ROWS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class HeadCell:
    """One KV head: its class as `RetentionRule.head_class` spells it, and the rows it keeps."""

    layer: int
    head: int
    head_class: str
    rows: int


def colour_of(head_class: str) -> str:
    """The colour of the costliest part in a class."""
    parts = head_class.split("+")
    return next((colour for part, colour in _COLOURS if part in parts), _OTHER)


def head_map(cells: Iterable[HeadCell], tokens: int) -> Table:
    """Layers down, KV heads across; each cell shows the share of the tokens that the head keeps."""
    by_layer: dict[int, list[HeadCell]] = {}
    for cell in cells:
        by_layer.setdefault(cell.layer, []).append(cell)
    table = Table(title="rows kept per layer and KV head", padding=(0, 0), pad_edge=False)
    table.add_column("layer", justify="right")
    heads = max((len(row) for row in by_layer.values()), default=0)
    with_rows = heads <= _HEADS_WITH_ROWS
    for head in range(heads):
        table.add_column(f"head {head}" if with_rows else f"{head}", justify="center")
    for layer, row in sorted(by_layer.items()):
        table.add_row(str(layer), *(_cell(cell, tokens, with_rows) for cell in row))
    return table


def legend(head_classes: Sequence[tuple[str, int]]) -> Text:
    """Every class that occurs, in its colour, with the number of its heads."""
    text = Text()
    for head_class, heads in head_classes:
        text.append(f" {head_class} ", colour_of(head_class))
        text.append(f" {heads} heads   ")
    return text


def _cell(cell: HeadCell, tokens: int, with_rows: bool) -> Text:
    share = cell.rows / tokens if tokens else 1.0
    rows = f"{cell.rows:>6} " if with_rows else ""
    return Text(f"{rows}{share:>4.0%} ", colour_of(cell.head_class))
