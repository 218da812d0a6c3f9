"""Flags that say what a command prints beside the answer."""

from __future__ import annotations

import dataclasses

import click

from headwise.commands.grouped_options import Flag, grouped


@dataclasses.dataclass(frozen=True, slots=True)
class OutputFlags:
    """The values of the flags."""

    quiet: bool
    as_json: bool
    heads: bool


_FLAGS: tuple[Flag, ...] = (
    click.option("--quiet", "-q", is_flag=True, help="Print the answer alone, without figures."),
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print one line of JSON for each answer, with its text and all figures.",
    ),
    click.option("--heads", is_flag=True, help="Show how many rows every head keeps."),
)
# adds the flags and gives the command `output`, an `OutputFlags`
output_options = grouped("output", OutputFlags, _FLAGS)
