"""Policies that are measured, under the figures' names; `t95` is an attention coverage of .95."""

from __future__ import annotations

from kvstore.policies.coverage import Coverage
from kvstore.policies.fastgen import FastGen
from kvstore.policies.full import Full
from services.evaluation.settings import Setting

_FULL = Setting("full", Full())
_FASTGEN = tuple(Setting(f"fastgen_t{t}", FastGen(recovery=t / 100)) for t in (80, 90, 95, 98))
_COVERAGE = tuple(
    Setting(f"coverage_t{t}", Coverage(recovery=t / 100)) for t in (80, 90, 95, 98, 99)
)

# every token after the prompt stays: what compacting the prompt costs
LATER_KEPT = (
    _FULL,
    *_FASTGEN,
    Setting("fastgen_t95_no_frequent", FastGen(recovery=0.95, frequent=False)),
    Setting("fastgen_t95_no_floor", FastGen(recovery=0.95, floor_rows=0)),
    Setting("fastgen_t95_strict", FastGen(recovery=0.95, strict=True)),
    *_COVERAGE,
    Setting("coverage_t95_unweighted", Coverage(recovery=0.95, value_weighted=False)),
    Setting("coverage_t98_unweighted", Coverage(recovery=0.98, value_weighted=False)),
    Setting("coverage_t90_strict", Coverage(recovery=0.90, strict=True)),
    Setting("coverage_t95_strict", Coverage(recovery=0.95, strict=True)),
)

PASS_KEY = (_FULL, *_FASTGEN[2:], *_COVERAGE[2:])
COPYING = (_FULL, *_FASTGEN[2:], *_COVERAGE[2:])

# as it is served: each head's rule applies after every token. `published` is FastGen's own rule,
# `fixed` a budget of coverage that stays the same number of rows
RULES_ON = (
    _FULL,
    *_FASTGEN[1:3],
    Setting("fastgen_t90_published", FastGen(recovery=0.90, keep_generated=False)),
    Setting("fastgen_t95_published", FastGen(recovery=0.95, keep_generated=False)),
    *_COVERAGE[2:],
    Setting("coverage_t95_fixed", Coverage(recovery=0.95, grow=False)),
    Setting("coverage_t98_fixed", Coverage(recovery=0.98, grow=False)),
    Setting("coverage_t99_fixed", Coverage(recovery=0.99, grow=False)),
)
LONG = (_FASTGEN[2], *_COVERAGE[3:])
