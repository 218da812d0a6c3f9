"""A policy that prefill does not see is checked as prefill, newer than decode or not, would."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from headwise.v1 import cache_pb2, prefill_pb2
from kvstore.errors import InvalidParameter, UnknownPolicy
from services.decode.link.unsent_policy import require_policy


def _policy(name: str, **parameters: Any) -> cache_pb2.Policy:
    return cache_pb2.Policy(name=name, parameters=ParseDict(parameters, Struct()))


class NewerPrefill:
    """Knows one policy more than decode, and that is its default."""

    def __init__(self) -> None:
        self.asked = 0

    async def describe(self) -> prefill_pb2.PrefillServiceDescribeResponse:
        self.asked += 1
        newer = cache_pb2.PolicyDescription(name="newer", defaults=_policy("", rows=3).parameters)
        full = cache_pb2.PolicyDescription(name="full")
        return prefill_pb2.PrefillServiceDescribeResponse(
            policies=[full, newer], default_policy="newer"
        )


@pytest.mark.parametrize(
    ("policy", "asked"),
    [
        (_policy(""), 0),
        (_policy("full"), 0),
        (_policy("coverage", recovery=0.9), 0),
        (_policy("newer"), 1),
        (_policy("newer", rows=9), 1),
        (_policy("", rows=9), 1),
    ],
)
async def test_good_policies_pass_and_prefill_is_asked_where_it_must_be(
    policy: cache_pb2.Policy, asked: int
) -> None:
    prefill = NewerPrefill()
    await require_policy(policy, prefill.describe)
    assert prefill.asked == asked


@pytest.mark.parametrize(
    ("policy", "error", "told"),
    [
        (_policy("nope"), UnknownPolicy, "known: full, newer"),
        (_policy("coverage", recovery=7), InvalidParameter, r"policy\.parameters\.recovery"),
        (_policy("newer", row=9), InvalidParameter, "known: rows"),
        (_policy("", row=9), InvalidParameter, "known: rows"),
    ],
)
async def test_bad_policies_are_refused(
    policy: cache_pb2.Policy, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        await require_policy(policy, NewerPrefill().describe)
