"""Settings as they are written on the command line."""

import pytest

from kvstore.errors import InvalidParameter, UnknownPolicy
from kvstore.policies import parse_policy
from kvstore.row_codecs import RowCodec
from services.evaluation.settings import parse_setting, parse_settings


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("full", "full", {}),
        ("coverage:recovery=.95", "coverage", {"recovery": 0.95}),
        (
            "coverage:recovery=0.9,windows=[8, 32],strict=true",
            "coverage",
            {"recovery": 0.9, "windows": [8, 32], "strict": True},
        ),
        (
            "h2o:budget=512 rows, retrieval_ratio=.1",
            "h2o",
            {"budget": "512 rows", "retrieval_ratio": 0.1},
        ),
    ],
)
def test_a_setting_is_a_policy_with_parameters(text, name, parameters):
    setting = parse_setting(text)
    assert setting.name == text
    assert setting.policy == parse_policy(name, parameters)


def test_a_setting_may_name_its_codec():
    coded = parse_setting("h2o:budget=.2@int8/int4")
    assert coded.codec == RowCodec.parse("int8/int4")
    assert coded.policy == parse_setting("h2o:budget=.2").policy
    assert coded.key != parse_setting("h2o:budget=.2").key
    assert parse_setting("full@model").key == parse_setting("full").key


@pytest.mark.parametrize(
    "text", ["full@int7", "full@", "h2o:budget", "h2o:=1", "h2o:budget=,sinks", "h2o:budget=2"]
)
def test_a_malformed_setting_is_refused(text):
    with pytest.raises(InvalidParameter):
        parse_setting(text)


def test_an_unknown_policy_is_named():
    with pytest.raises(UnknownPolicy, match="h3o"):
        parse_setting("h3o:budget=.2")


def test_a_file_of_settings_may_have_comments():
    found = parse_settings(["# mine", "", " full ", "h2o:budget=.2"])
    assert [setting.name for setting in found] == ["full", "h2o:budget=.2"]


def test_equal_settings_are_refused_in_any_spelling():
    with pytest.raises(InvalidParameter, match="the same as"):
        parse_settings(["h2o:budget=.2", "h2o:budget=0.20"])
    with pytest.raises(InvalidParameter, match="no setting"):
        parse_settings(["# nothing"])
