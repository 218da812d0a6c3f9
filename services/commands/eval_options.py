"""Options of `headwise eval`."""

from __future__ import annotations

import dataclasses
import pathlib

import click

from headwise.commands.grouped_options import Flag, grouped

_READ = click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)
_PARTS = ("forced", "needles", "ruler", "conversation", "long")


@dataclasses.dataclass(frozen=True, slots=True)
class EvalOptions:
    """The measurements to take, and the folder for them."""

    policies: tuple[str, ...]
    settings_file: pathlib.Path | None
    parts: tuple[str, ...]
    quick: bool
    contexts: tuple[int, ...]
    passages: int
    text_file: pathlib.Path | None
    out: pathlib.Path

    @property
    def written(self) -> list[str]:
        """The settings as the user wrote them; the full cache and the presets by default."""
        lines = self.settings_file.read_text().splitlines() if self.settings_file else []
        return [*self.policies, *lines] or ["full", "quality", "balanced", "small"]


_FLAGS: tuple[Flag, ...] = (
    click.option(
        "--policy",
        "policies",
        multiple=True,
        help="Setting to measure, as POLICY:NAME=VALUE,NAME=VALUE; repeatable.",
    ),
    click.option("--settings", "settings_file", type=_READ, help="File with one setting per line."),
    click.option(
        "--part",
        "parts",
        multiple=True,
        type=click.Choice(_PARTS),
        default=_PARTS,
        help="Part to measure; repeatable. All parts by default.",
    ),
    click.option(
        "--quick",
        is_flag=True,
        help="Take few and short texts, for a run of minutes instead of hours.",
    ),
    click.option(
        "--context",
        "contexts",
        multiple=True,
        type=click.IntRange(16),
        help="Tokens of the prompts of the part forced; repeatable.",
    ),
    click.option(
        "--passages",
        default=0,
        type=click.IntRange(0),
        help="Number of texts of each kind; 0 for all.",
    ),
    click.option(
        "--text", "text_file", type=_READ, help="Text file to use instead of Python's manual."
    ),
    click.option(
        "--out",
        default="evaluation",
        show_default=True,
        type=click.Path(file_okay=False, path_type=pathlib.Path),
        help="Folder for cells.jsonl, report.html and figures.json.",
    ),
)
# adds the flags and gives the command `options`, an `EvalOptions`
eval_options = grouped("options", EvalOptions, _FLAGS)
