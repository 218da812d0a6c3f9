"""The check of a policy that prefill never sees, because the prompt leaves nothing to compute."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from headwise.v1 import cache_pb2, prefill_pb2
from kvstore.errors import InvalidParameter, UnknownPolicy
from kvstore.policies import known_policies, known_presets
from services.runtime.serving.convert import policy_from_proto

Describe = Callable[[], Awaitable[prefill_pb2.PrefillServiceDescribeResponse]]


async def require_policy(policy: cache_pb2.Policy, describe: Describe) -> None:
    """Raise what prefill would raise for this policy.

    Prefill is asked for its policies only where decode does not know the name: it may be newer, and
    it alone knows the default. Raises what `describe` raises as well.
    """
    parameters = list(policy.parameters.fields)
    if not policy.name and not parameters:
        return
    ours = {name for name, _ in (*known_policies(), *known_presets())}
    if policy.name in ours:
        policy_from_proto(policy, policy.name)
        return
    described = await describe()
    name = policy.name or described.default_policy
    theirs = {one.name: one.defaults.fields for one in described.policies}
    if name not in theirs:
        raise UnknownPolicy(name, tuple(theirs))
    if name in ours:
        policy_from_proto(policy, name)
    for parameter in parameters:
        if parameter not in theirs[name]:
            known = ", ".join(theirs[name]) or "none"
            raise InvalidParameter(f"policy.parameters.{parameter}", f"unknown; known: {known}")
