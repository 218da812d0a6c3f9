"""The measurement of each part, imported only where the part runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from benchmarks.gpu.figures import Figures
from benchmarks.gpu.setting import Setting

# the default of decode but on CUDA in 16 bits, where pages have 64 rows
_SMALL_PAGE_ROWS = 16
# a dense step takes some 50 ms and makes 69 GB of new cache
_FEW_REPEATS = 5


def measured(setting: Setting) -> Figures:
    """Yield the figures of the setting's part. Raises `KeyError` if it measures nothing."""
    if setting.part.startswith("smoke-"):
        return _smoke(setting)
    return _MEASURES[setting.part](setting)


def _smoke(here: Setting) -> Figures:
    from benchmarks.gpu import smoke

    return smoke.check(here)


def _ceilings(here: Setting) -> Figures:
    from benchmarks.gpu import ceilings

    return ceilings.measure(here.sizes, here.timer())


def _attention(here: Setting) -> Figures:
    from benchmarks.gpu import decode_attention

    return decode_attention.measure(here.sizes, here.timer(), here.ceilings())


def _small_pages(here: Setting) -> Figures:
    from benchmarks.gpu import decode_attention

    sizes = dataclasses.replace(here.sizes, page_rows=_SMALL_PAGE_ROWS)
    return decode_attention.measure_pages(sizes, here.timer(), here.ceilings())


def _one_sequence(here: Setting) -> Figures:
    from benchmarks.gpu import decode_attention

    return decode_attention.measure_one(here.sizes, here.timer(), here.ceilings())


def _retention(here: Setting) -> Figures:
    from benchmarks.gpu import retain

    return retain.measure(here.sizes, here.timer())


def _column_mass(here: Setting) -> Figures:
    from benchmarks.gpu import column_mass

    return column_mass.measure(here.sizes, here.timer())


def _gather(here: Setting) -> Figures:
    from benchmarks.gpu import compact

    return compact.measure(here.sizes, here.timer(), here.ceilings())


def _choosing(here: Setting) -> Figures:
    from benchmarks.gpu import choice

    return choice.measure(here.sizes, here.timer())


def _step(here: Setting) -> Figures:
    from benchmarks.gpu import decode_step

    few = here.timer(min(_FEW_REPEATS, here.sizes.repeats))
    return decode_step.measure(here.sizes, here.timer(), few, here.ceilings())


def _step_fused(here: Setting) -> Figures:
    from benchmarks.gpu import decode_step

    return decode_step.measure_fused(here.sizes, here.timer(), here.ceilings())


def _engine(here: Setting) -> Figures:
    from benchmarks.gpu import engine

    return engine.measure(here.sizes, here.device)


_MEASURES: dict[str, Callable[[Setting], Figures]] = {
    "ceilings": _ceilings,
    "attention": _attention,
    "small-pages": _small_pages,
    "one-sequence": _one_sequence,
    "retention": _retention,
    "column-mass": _column_mass,
    "gather": _gather,
    "choosing": _choosing,
    "step": _step,
    "step-fused": _step_fused,
    "engine": _engine,
}
