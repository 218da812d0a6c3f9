"""Options of `headwise tune`."""

from __future__ import annotations

import dataclasses
import pathlib

import click

from headwise.commands.grouped_options import Flag, grouped

_READ = click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)


@dataclasses.dataclass(frozen=True, slots=True)
class TuneOptions:
    """One of the two bounds, the family of settings, and the texts to measure it on."""

    max_kl: float | None
    max_bytes: float | None
    policy: str
    text_file: pathlib.Path | None
    context: int
    fed: int
    passages: int


_FLAGS: tuple[Flag, ...] = (
    click.option(
        "--max-kl",
        type=click.FloatRange(0, min_open=True),
        help="Largest mean KL divergence per token, in nats.",
    ),
    click.option(
        "--max-bytes",
        type=click.FloatRange(0, 1, min_open=True),
        help="Most bytes of the cache, as a share of the dense cache's.",
    ),
    click.option(
        "--policy",
        default="lookback:retrieval_ratio=.1",
        show_default=True,
        help="Settings to search: a policy without its recovery or budget, and @CODEC if wanted.",
    ),
    click.option(
        "--text", "text_file", type=_READ, help="Text file to use instead of Python's manual."
    ),
    click.option(
        "--context",
        default=1536,
        show_default=True,
        type=click.IntRange(16),
        help="Tokens of each prompt.",
    ),
    click.option(
        "--fed",
        default=128,
        show_default=True,
        type=click.IntRange(1),
        help="Tokens of each text that are predicted after its prompt.",
    ),
    click.option(
        "--passages",
        default=3,
        show_default=True,
        type=click.IntRange(1),
        help="Number of texts to measure on.",
    ),
)
# adds the flags and gives the command `options`, a `TuneOptions`
tune_options = grouped("options", TuneOptions, _FLAGS)
