"""What is measured: policies under the names that the figures carry."""

from __future__ import annotations

import dataclasses

from kvstore.policies import Policy


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A policy and its name in tables and figures."""

    name: str
    policy: Policy
