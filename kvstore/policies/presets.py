"""Policies with parameters chosen for the user, under names of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class Preset:
    """A name that stands for a policy with these parameters; the user's own go over them.

    Caches carry the policy and all its parameters, never a preset's name, so a preset may change
    while caches made with it stay valid.
    """

    name: str
    policy: str
    parameters: Mapping[str, object]


# what each costs, and of what these were chosen, is in docs/results/policies.md
PRESETS = (
    Preset("quality", "lookback", {"budget": 0.45, "retrieval_ratio": 0.12}),
    Preset("balanced", "lookback", {"budget": 0.3, "retrieval_ratio": 0.1}),
    Preset("small", "lookback", {"budget": 0.15, "retrieval_ratio": 0.05}),
)
