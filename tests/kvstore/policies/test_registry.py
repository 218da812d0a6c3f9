"""Policies by name, and parameters that are wrong."""

import dataclasses
import json
import math

import pytest

from kvstore.cache import canonical_json
from kvstore.errors import InvalidParameter, UnknownPolicy
from kvstore.policies.budget import Budget
from kvstore.policies.coverage import Coverage
from kvstore.policies.fastgen import FastGen
from kvstore.policies.h2o import H2O
from kvstore.policies.registry import known_policies, known_presets, parse_policy


def test_json_numbers_may_be_floats():
    policy = parse_policy("fastgen", {"floor_rows": 48.0, "recovery": 1, "strict": True})
    assert policy == FastGen(floor_rows=48, recovery=1.0, strict=True)


def test_a_grid_arrives_as_a_list():
    assert parse_policy("coverage", {"windows": [8.0, 32]}) == Coverage(windows=(8, 32))


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        (0.25, Budget(ratio=0.25)),
        (1, Budget(ratio=1.0)),
        ("512 rows", Budget(rows=512)),
        ("512rows", Budget(rows=512)),
        ("7 bytes", Budget(bytes=7)),
        ("3 MiB", Budget(bytes=3 << 20)),
    ],
)
def test_budgets_are_ratios_rows_or_bytes(spelling, expected):
    policy = parse_policy("h2o", {"budget": spelling})
    assert policy == H2O(budget=expected)
    assert parse_policy("h2o", policy.parameters()) == policy


@pytest.mark.parametrize("name", [name for name, _ in known_policies()])
def test_parameters_survive_json_and_spell_defaults_out(name):
    policy = parse_policy(name, {})
    spelled = canonical_json(policy.parameters())
    again = parse_policy(name, json.loads(spelled))
    assert again == policy
    assert dict(known_policies())[name] == policy.parameters()


def test_whole_and_float_spellings_share_a_fingerprint():
    one, other = (parse_policy("coverage", {"recovery": 1, "sinks": s}) for s in (2, 2.0))
    assert canonical_json(one.parameters()) == canonical_json(other.parameters())


def test_an_unknown_policy_is_refused_by_name():
    with pytest.raises(UnknownPolicy) as caught:
        parse_policy("h3o", {})
    assert caught.value.name == "h3o"
    known = (*known_policies(), *known_presets())
    assert caught.value.known == tuple(name for name, _ in known)


def test_a_preset_is_a_policy_whose_parameters_a_user_can_override():
    balanced = parse_policy("balanced", {})
    assert (balanced.name, balanced.retrieval_ratio) == ("lookback", 0.1)
    assert parse_policy("lookback", balanced.parameters()) == balanced
    assert parse_policy("balanced", {"distance": 9}) == dataclasses.replace(balanced, distance=9)
    with pytest.raises(InvalidParameter, match="recovery"):
        parse_policy("balanced", {"recovery": 0.9})


def test_presets_and_policies_share_no_name_and_get_smaller():
    names = [name for name, _ in (*known_policies(), *known_presets())]
    assert len(set(names)) == len(names)
    assert [name for name, _ in known_presets()] == ["quality", "balanced", "small"]
    budgets = [policy.budget.ratio for _, policy in known_presets()]
    assert budgets == sorted(budgets, reverse=True)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("full", "recovery", 0.9),
        ("fastgen", "windows", [16]),
        ("fastgen", "recovery", 0),
        ("fastgen", "recovery", 1.01),
        ("fastgen", "recovery", math.nan),
        ("fastgen", "recovery", True),
        ("fastgen", "recovery", "0.9"),
        ("fastgen", "recovery", None),
        ("fastgen", "local_ratio", -0.3),
        ("fastgen", "frequent_ratio", math.inf),
        ("fastgen", "strict", 1),
        ("fastgen", "strict", "true"),
        ("fastgen", "sinks", -1),
        ("fastgen", "sinks", 1.5),
        ("fastgen", "sinks", True),
        ("fastgen", "floor_rows", 1e30),
        ("fastgen", "floor_rows", 10**400),
        ("fastgen", "profile_rows", [1]),
        ("coverage", "windows", []),
        ("coverage", "windows", 16),
        ("coverage", "windows", "16"),
        ("coverage", "windows", [0, 16]),
        ("coverage", "windows", [32, 16]),
        ("coverage", "windows", [16, 16]),
        ("coverage", "windows", [16, math.nan]),
        ("coverage", "windows", list(range(1, 1000))),
        ("coverage", "", 1),
        ("coverage", "retrieval_ratio", -0.1),
        ("coverage", "retrieval_ratio", 1.1),
        ("h2o", "budget", 0),
        ("h2o", "budget", 1.5),
        ("h2o", "budget", "0 rows"),
        ("h2o", "budget", "-3 rows"),
        ("h2o", "budget", "1.5 MiB"),
        ("h2o", "budget", "12 MB"),
        ("h2o", "budget", f"{1 << 25} rows"),
        ("h2o", "budget", "9" * 400 + " bytes"),
        ("h2o", "budget", [0.3]),
    ],
)
def test_a_bad_parameter_is_named(name, key, value):
    with pytest.raises(InvalidParameter) as caught:
        parse_policy(name, {key: value})
    assert caught.value.field == f"policy.parameters.{key}"
