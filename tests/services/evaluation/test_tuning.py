"""Bisection finds what a look at every size would."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import InvalidParameter
from kvstore.row_codecs import RowCodec
from services.evaluation.settings import parse_setting
from services.evaluation.tuning import (
    STEPS,
    Tried,
    best_within_bytes,
    family_of,
    smallest_within_kl,
)

FAMILY = family_of("h2o", {"sinks": 2})


def measure(setting):
    """A world in which the bytes are the budget and the error falls with it."""
    budget = setting.policy.budget.ratio
    return Tried(setting, math.exp(-8 * budget), budget)


# what a brute search looks at; bisection must come as near as its last interval
EVERYWHERE = [measure(FAMILY.at(n / 512)) for n in range(513)]


@settings(max_examples=50, deadline=None)
@given(st.floats(0.001, 0.8))
def test_the_smallest_within_a_divergence_is_found(most):
    fitting = [tried.bytes for tried in EVERYWHERE if tried.kl <= most]
    found = smallest_within_kl(FAMILY, most, measure)
    assert found.kl <= most
    # budgets are spaced by a factor: of the range's 50, the last interval's share
    assert found.bytes <= min(fitting) * 50 ** (2 / 2**STEPS)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.021, 1))
def test_the_best_within_bytes_is_found(most):
    fitting = [tried.kl for tried in EVERYWHERE if tried.bytes <= most]
    found = best_within_bytes(FAMILY, most, measure)
    assert found.bytes <= most
    assert found.kl <= min(fitting) + 0.08


def test_a_bound_that_nothing_keeps_finds_nothing():
    assert smallest_within_kl(FAMILY, 1e-9, measure) is None
    assert best_within_bytes(FAMILY, 0.01, measure) is None


def test_a_family_has_one_codec():
    coded = family_of("h2o", {}, RowCodec.parse("int8")).at(0.5)
    assert coded == parse_setting(coded.name)
    assert coded.codec.name == "int8"


def test_a_family_leaves_one_parameter_open():
    family = family_of("coverage", {"retrieval_ratio": 0.5})
    small, large = family.at(0.0).policy, family.at(1.0).policy
    assert small.retrieval_ratio == large.retrieval_ratio == 0.5
    assert small.recovery < 0.51 < 0.999 < large.recovery
    # a preset has chosen its budget: what is left open is searched all the same
    assert family_of("balanced", {}).parameter == "budget"
    for policy, fixed in (("full", {}), ("h2o", {"budget": 0.2})):
        with pytest.raises(InvalidParameter, match="neither"):
            family_of(policy, fixed)
