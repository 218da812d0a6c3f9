"""Settings to measure: policies with parameters and a codec, in command-line spelling."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable

from kvstore.cache import canonical_json
from kvstore.errors import InvalidParameter
from kvstore.policies import Policy, parse_policy
from kvstore.row_codecs import MODEL_ROWS, RowCodec

# a comma between brackets belongs to a list
_COMMA = re.compile(r",(?![^\[]*\])")


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A policy, the codec of its rows, and their name in tables and figures."""

    name: str
    policy: Policy
    codec: RowCodec = MODEL_ROWS

    @property
    def key(self) -> str:
        """The same for whatever means the same, however it was written."""
        policy = f"{self.policy.name} {canonical_json(self.policy.parameters())}"
        return policy if self.codec == MODEL_ROWS else f"{policy} @{self.codec.name}"


def parse_setting(text: str) -> Setting:
    """`policy` or `policy:name=value,name=value`, and `@codec` if it has one; the text is the name.

    Raises `UnknownPolicy` or `InvalidParameter`.
    """
    policy, parameters, codec = parse_written(text)
    return Setting(text, parse_policy(policy, parameters), codec)


def parse_written(text: str) -> tuple[str, dict[str, object], RowCodec]:
    """The policy's name, the parameters that are given, the codec. Raises `InvalidParameter`."""
    policy, coded, spelling = text.partition("@")
    codec = RowCodec.parse(spelling.strip()) if coded else MODEL_ROWS
    name, _, written = policy.partition(":")
    parameters: dict[str, object] = {}
    for pair in _COMMA.split(written) if written else ():
        key, equals, value = pair.partition("=")
        if not (key.strip() and equals):
            raise InvalidParameter("policy", f"{pair!r} of {text!r} is not name=value")
        parameters[key.strip()] = _value(value.strip())
    return name.strip(), parameters, codec


def parse_settings(texts: Iterable[str]) -> tuple[Setting, ...]:
    """One setting a text; empty ones and those that begin with # are left out.

    Raises what `parse_setting` raises, and `InvalidParameter` if two are the same or none is left.
    """
    wanted = (text.strip() for text in texts)
    settings = tuple(parse_setting(text) for text in wanted if text and not text.startswith("#"))
    seen: dict[str, str] = {}
    for setting in settings:
        if setting.key in seen:
            other = seen[setting.key]
            raise InvalidParameter("policy", f"{setting.name!r} is the same as {other!r}")
        seen[setting.key] = setting.name
    if not settings:
        raise InvalidParameter("policy", "no setting is named")
    return settings


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        # .95 is a number to people, not to JSON
        return float(text)
    except ValueError:
        return text
