"""The policies there are, by name."""

from __future__ import annotations

from collections.abc import Mapping

from kvstore.errors import UnknownPolicy
from kvstore.policies.base import Policy
from kvstore.policies.coverage import Coverage
from kvstore.policies.fastgen import FastGen
from kvstore.policies.full import Full
from kvstore.policies.parameters import from_parameters

_POLICIES: dict[str, type[Full] | type[FastGen] | type[Coverage]] = {
    policy.name: policy for policy in (Full, FastGen, Coverage)
}


def parse_policy(name: str, parameters: Mapping[str, object]) -> Policy:
    """The policy `name` with JSON-typed parameters over its defaults.

    Raises `UnknownPolicy`, or `InvalidParameter` with the field `policy.parameters.<key>`.
    """
    if name not in _POLICIES:
        raise UnknownPolicy(name, tuple(_POLICIES))
    policy: Policy = from_parameters(_POLICIES[name], parameters)
    return policy


def known_policies() -> tuple[tuple[str, dict[str, object]], ...]:
    """Every policy's name with its default parameters."""
    return tuple((name, policy().parameters()) for name, policy in _POLICIES.items())
