"""One file a policy; `parse_policy` finds them by name."""

from kvstore.policies.base import Policy
from kvstore.policies.registry import known_policies, known_presets, parse_policy

__all__ = ["Policy", "known_policies", "known_presets", "parse_policy"]
