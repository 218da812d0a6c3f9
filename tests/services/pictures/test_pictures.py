"""Figures and maps as people read them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from headwise.commands.figures import human_bytes, human_seconds
from services.pictures.heads import HeadCell, colour_of, head_map, legend


def _shown(picture: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(picture)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (3 << 20, "3.0 MiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_bytes_come_in_binary_units(count: int, shown: str) -> None:
    assert human_bytes(count) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0 ms"), (0.0421, "42 ms"), (12.34, "12.3 s")])
def test_seconds_below_one_come_in_milliseconds(seconds: float, shown: str) -> None:
    assert human_seconds(seconds) == shown


def test_the_colour_is_that_of_the_costliest_part() -> None:
    assert colour_of("special+punctuation") == colour_of("punctuation")
    assert colour_of("special+punctuation+frequent+local") == colour_of("frequent")
    assert colour_of("full") != colour_of("frequent") != colour_of("local")
    assert colour_of("floor")


def test_the_map_has_a_row_per_layer_and_a_share_per_head() -> None:
    cells = [
        HeadCell(1, 0, "full", 200),
        HeadCell(0, 1, "local", 50),
        HeadCell(0, 0, "floor", 9),
    ]
    # in the order given within a layer, layers ascending
    rows = [line for line in _shown(head_map(cells, 200)).splitlines() if "%" in line]
    assert [" ".join(r.replace("│", " ").split()) for r in rows] == ["0 50 25% 9 4%", "1 200 100%"]


def test_an_empty_prompt_is_no_division_by_zero() -> None:
    assert "100%" in _shown(head_map([HeadCell(0, 0, "full", 0)], 0))


def test_the_legend_names_every_class_with_its_heads() -> None:
    assert "full  3 heads" in _shown(legend([("full", 3), ("local", 1)]))


def test_many_heads_still_fit_a_narrow_terminal() -> None:
    cells = [HeadCell(0, head, "local", 500) for head in range(8)]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(head_map(cells, 1000))
    shown = console.export_text()
    assert shown.count("50%") == 8
    assert all(len(line) <= 80 for line in shown.splitlines())
