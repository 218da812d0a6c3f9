"""The policies that are held against one another, at like sizes, under the figures' names."""

from __future__ import annotations

from benchmarks.settings import Setting
from kvstore.policies import parse_policy


def setting(name: str, policy: str, **parameters: object) -> Setting:
    return Setting(name, parse_policy(policy, parameters))


def _budgets(name: str, policy: str, *percents: int, **parameters: object) -> tuple[Setting, ...]:
    return tuple(
        setting(f"{name}_{percent}", policy, budget=percent / 100, **parameters)
        for percent in percents
    )


# `r15`: with the best .15 of the heads at retrieving kept whole
_COVERAGE = tuple(setting(f"coverage_t{t}", "coverage", recovery=t / 100) for t in (90, 95, 98))
_COVERAGE_RETRIEVAL = tuple(
    setting(f"coverage_t{t}_r15", "coverage", recovery=t / 100, retrieval_ratio=0.15)
    for t in (80, 90, 95, 98)
)
_RECONSTRUCTION = _budgets("reconstruction", "reconstruction", 30, 20, 10)

SIZES = (
    *_COVERAGE,
    *_COVERAGE_RETRIEVAL,
    *_budgets("h2o", "h2o", 30, 20, 10),
    *_budgets("h2o_r15", "h2o", 30, 20, retrieval_ratio=0.15),
    *_budgets("snapkv", "snapkv", 30, 20, 10),
    *_budgets("snapkv_r15", "snapkv", 30, 20, retrieval_ratio=0.15),
    *_budgets("adakv", "adakv", 30, 20, 10),
    *_budgets("pyramidkv", "pyramidkv", 30),
    *_budgets("chunkkv", "chunkkv", 30),
    *_budgets("sagekv", "sagekv", 30),
    *_budgets("qfilters", "qfilters", 30),
    *_budgets("streaming_llm", "streaming_llm", 30, 20, 10),
    setting("razor_attention_256", "razor_attention", least_window=256),
    *_RECONSTRUCTION,
)

# profiles are what costs here: these share four
PASS_KEY = (
    setting("full", "full"),
    _COVERAGE[2],
    *_COVERAGE_RETRIEVAL[1:],
    setting("coverage_t95_r30", "coverage", recovery=0.95, retrieval_ratio=0.3),
    *_budgets("h2o", "h2o", 30),
    *_budgets("h2o_r15", "h2o", 30, retrieval_ratio=0.15),
    *_budgets("snapkv", "snapkv", 30),
    *_budgets("snapkv_r15", "snapkv", 30, retrieval_ratio=0.15),
    *_RECONSTRUCTION,
)
