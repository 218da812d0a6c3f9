"""Seconds on the command line."""

from __future__ import annotations

import math
from typing import Any

import click

# 30 years; gRPC and the clocks of a system overflow somewhere above
_MOST_SECONDS = 1e9


class Seconds(click.ParamType[float]):
    """A finite number of seconds: 0 or more, or more than 0 if `positive`."""

    name = "seconds"

    def __init__(self, *, positive: bool = False) -> None:
        self._positive = positive

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number. Raises `click.BadParameter`."""
        try:
            seconds = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        if not (math.isfinite(seconds) and 0 <= seconds <= _MOST_SECONDS):
            self.fail(f"{value} is not within 0 and {_MOST_SECONDS:g} seconds.", param, ctx)
        if self._positive and not seconds:
            self.fail("0 seconds are none: give more.", param, ctx)
        return seconds
