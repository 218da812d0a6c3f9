"""The policies that are held against one another, at like sizes, under the figures' names."""

from __future__ import annotations

from kvstore.policies import parse_policy
from services.evaluation.settings import Setting


def _setting(name: str, policy: str, **parameters: object) -> Setting:
    return Setting(name, parse_policy(policy, parameters))


def _budgets(policy: str, *percents: int) -> tuple[Setting, ...]:
    return tuple(_setting(f"{policy}_{p}", policy, budget=p / 100) for p in percents)


def _coverage(recovery_percent: int, retrieval_percent: int = 0) -> Setting:
    """`r15`: with the best .15 of the heads at retrieving kept whole."""
    name = f"coverage_t{recovery_percent}"
    return _setting(
        f"{name}_r{retrieval_percent}" if retrieval_percent else name,
        "coverage",
        recovery=recovery_percent / 100,
        retrieval_ratio=retrieval_percent / 100,
    )


_RECONSTRUCTION = _budgets("reconstruction", 30, 20, 10)

SIZES = (
    _coverage(95),
    _coverage(98),
    _coverage(95, 15),
    _coverage(90, 15),
    _coverage(90, 8),
    _coverage(80, 5),
    _coverage(98, 15),
    *_budgets("h2o", 30, 20, 10),
    _setting("h2o_30_r15", "h2o", budget=0.3, retrieval_ratio=0.15),
    _setting("h2o_20_r8", "h2o", budget=0.2, retrieval_ratio=0.08),
    *_RECONSTRUCTION,
    *_budgets("attention_matching", 30, 20, 10),
    *_budgets("lookback", 30, 20, 10),
    _setting("lookback_30_r10", "lookback", budget=0.3, retrieval_ratio=0.1),
    _setting("lookback_20_r8", "lookback", budget=0.2, retrieval_ratio=0.08),
    _setting("lookback_20_r5", "lookback", budget=0.2, retrieval_ratio=0.05),
    _setting("lookback_10_r2", "lookback", budget=0.1, retrieval_ratio=0.025),
    _setting(
        "lookback_10_r2_s",
        "lookback",
        budget=0.1,
        retrieval_ratio=0.025,
        sensitivity=True,
        queries=1024,
    ),
    _setting("lookback_20_r5_s", "lookback", budget=0.2, retrieval_ratio=0.05, sensitivity=True),
    _setting("lookback_10_r3", "lookback", budget=0.1, retrieval_ratio=0.035),
    *_budgets("snapkv", 30, 20, 10),
    _setting("snapkv_30_r15", "snapkv", budget=0.3, retrieval_ratio=0.15),
    *_budgets("adakv", 30, 20),
    *_budgets("pyramidkv", 30),
    *_budgets("pyramid_infer", 30),
    *_budgets("chunkkv", 30),
    *_budgets("sagekv", 30),
    *_budgets("qfilters", 30),
    *_budgets("streaming_llm", 30),
    *_budgets("cascading", 30),
    *_budgets("citrus", 30),
    *_budgets("vlcache", 30),
    *_budgets("uncomp", 30, 20),
    *_budgets("zeromerge", 30, 20),
    *_budgets("kvmerger", 30, 20),
    _setting("razor_attention_256", "razor_attention", least_window=256),
    _setting("razor_attention_256_plain", "razor_attention", least_window=256, compensation=False),
)

# profiles are what costs here: these share four
PASS_KEY = (
    _setting("full", "full"),
    _coverage(98),
    _coverage(95, 15),
    _coverage(90, 15),
    _coverage(95, 8),
    _coverage(90, 30),
    *_budgets("h2o", 30),
    _setting("h2o_30_r15", "h2o", budget=0.3, retrieval_ratio=0.15),
    *_budgets("snapkv", 30),
    _setting("snapkv_30_r15", "snapkv", budget=0.3, retrieval_ratio=0.15),
    *_RECONSTRUCTION,
    *_budgets("attention_matching", 30, 20),
    *_budgets("lookback", 30),
    _setting("lookback_30_r10", "lookback", budget=0.3, retrieval_ratio=0.1),
)
