"""Statements of the documents that the code decides: defaults, sizes, variables, stale words."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable

import pytest
import torch

from kvstore.policies import parse_policy
from kvstore.policies.presets import PRESETS
from kvstore.retention import RETENTION_CHUNK_TOKENS
from kvstore.row_codecs import ElementCodec
from kvstore.row_codecs.layout import RowLayout
from services.commands.variables import KNOWN_VARIABLES
from services.decode.options import DecodeOptions
from services.prefill.options import PrefillOptions
from services.runtime.model.allow_list import SERVED_MODEL_TYPES
from services.runtime.process.configuration import settings_of
from services.runtime.serving.request_size import MAX_REQUEST_BYTES

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_PRESETS = {preset.name: preset.parameters for preset in PRESETS}


def _default(options: type, setting: str) -> object:
    return next(field.default for name, _, field in settings_of(options) if name == setting)


def _parameter(policy: str, name: str) -> object:
    return parse_policy(policy, {}).parameters()[name]


def _percent(value: object) -> str:
    assert isinstance(value, float)
    return f"{value:.0%}".removesuffix("%")


def _preset(name: str) -> str:
    given = _PRESETS[name]
    budget, ratio = given["budget"], given["retrieval_ratio"]
    return f"budget {budget:.2f}, retrieval_ratio {ratio:.2f}".replace("0.", ".")


def _row_bytes(codec: ElementCodec) -> int:
    return RowLayout(codec, 64, torch.float16).row_bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Statement:
    """`pattern` occurs once in `page`, and its group is what the code says."""

    page: str
    pattern: str
    expected: Callable[[], object]


_LATE = r"of the last (\d+) % of the queries; with"
STATEMENTS = (
    Statement("README.md", r"port (\d+) +port \d+", lambda: _default(DecodeOptions, "port")),
    Statement("README.md", r"port \d+ +port (\d+)", lambda: _default(PrefillOptions, "port")),
    Statement("docs/index.md", r"decode :(\d+)", lambda: _default(DecodeOptions, "port")),
    Statement("docs/index.md", r"prefill :(\d+)", lambda: _default(PrefillOptions, "port")),
    Statement(
        "docs/results/speed.md",
        r"default policy samples (\d+) late queries",
        lambda: _parameter("lookback", "queries"),
    ),
    Statement(
        "docs/results/speed.md",
        r"all rows by default \(`profile_rows` (\d+)\)",
        lambda: {_parameter(name, "profile_rows") for name in ("coverage", "fastgen")}.pop(),
    ),
    Statement(
        "docs/sizing.md",
        r"use (\d+) %, the budget of the default policy",
        lambda: _percent(_PRESETS[str(_default(PrefillOptions, "default_policy"))]["budget"]),
    ),
    *(
        Statement(
            "docs/policies.md",
            rf"\| `{name}`(?:, the default)? \| `lookback`, ([^|]+?) \|",
            lambda name=name: _preset(name),
        )
        for name in _PRESETS
    ),
    Statement(
        "docs/policies.md",
        r"`floor_rows` \((\d+)\)",
        lambda: _parameter("lookback", "floor_rows"),
    ),
    Statement("docs/policies.md", _LATE, lambda: _percent(_parameter("lookback", "late_share"))),
    Statement(
        "docs/policies.md",
        r"a sample of (\d+) of the last",
        lambda: _parameter("lookback", "queries"),
    ),
    *(
        Statement(
            "docs/policies.md",
            rf"\| `{policy}` \|.*\| last (\d+) queries",
            lambda policy=policy: _parameter(policy, "window"),
        )
        for policy in ("snapkv", "adakv", "pyramidkv", "chunkkv", "cascading", "vlcache", "uncomp")
    ),
    Statement(
        "docs/policies.md",
        r"last \d+ queries; (\d+) of all",
        lambda: _parameter("uncomp", "queries"),
    ),
    Statement(
        "docs/policies.md",
        r"a second pass, and ([\d,]+) of its queries",
        lambda: f"{_parameter('attention_matching', 'queries'):,}",
    ),
    *(
        Statement(
            "docs/concepts/codecs.md",
            rf"\| `{codec}` \| (\d+) (?:in float16 )?\|",
            lambda codec=codec: _row_bytes(codec),
        )
        for codec in ElementCodec
    ),
    Statement(
        "docs/concepts/per-head-retention.md",
        r"each retention chunk of (\d+)",
        lambda: RETENTION_CHUNK_TOKENS,
    ),
    Statement(
        "docs/decode-engine.md",
        r"retention chunks of (\d+) tokens",
        lambda: RETENTION_CHUNK_TOKENS,
    ),
    Statement(
        "docs/glossary.md",
        r"\| retention chunk \| (\d+) fed tokens",
        lambda: RETENTION_CHUNK_TOKENS,
    ),
    Statement(
        "docs/stored-caches.md",
        r"`--store-memory-bytes` \| this process's memory; (\d+) GiB",
        lambda: int(str(_default(PrefillOptions, "store_memory_bytes"))) >> 30,
    ),
    Statement(
        "docs/security.md", r"bounded messages \((\d+) MiB\)", lambda: MAX_REQUEST_BYTES >> 20
    ),
)

# words that were untrue once; each says something that the code does not do
STALE = (
    r"every option is also",
    r"every policy looks at all rows",
    r"nothing else there",
    r"pip install headwise\b",
    r"PodMonitor",
    r"99 % of the attention",
)


def captured(statement: Statement, text: str) -> str:
    """The group of the one place where the statement stands."""
    [found] = re.findall(statement.pattern, text)
    return str(found)


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda one: f"{one.page} {one.pattern}")
def test_the_code_says_the_same(statement: Statement) -> None:
    text = (ROOT / statement.page).read_text(encoding="utf-8")
    assert captured(statement, text) == str(statement.expected())


def test_another_value_is_found() -> None:
    statement = Statement("page", r"port (\d+)", lambda: 7080)
    assert captured(statement, "port 7081") != str(statement.expected())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_variables_exist(page: pathlib.Path) -> None:
    named = set(re.findall(r"\bHEADWISE_[A-Z_]+[A-Z]\b", page.read_text(encoding="utf-8")))
    assert named <= KNOWN_VARIABLES


@pytest.mark.parametrize("folder", ["deploy", "docs", "services", "headwise"])
def test_no_stale_words(folder: str) -> None:
    files = [
        file for kind in ("md", "yaml", "py", "toml") for file in (ROOT / folder).rglob(f"*.{kind}")
    ]
    stale = {
        f"{file.relative_to(ROOT)}: {words}"
        for file in (*files, ROOT / "README.md")
        for words in STALE
        if re.search(words, file.read_text(encoding="utf-8"))
    }
    assert stale == set()


def test_every_served_family_is_named() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    [line] = [line for line in text.splitlines() if "are served." in line]
    names = line.partition(" are served.")[0].replace(" and ", ", ").split(", ")
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()) for name in names}
    types = {re.sub(r"(_text$|[^a-z0-9])", "", kind) for kind in SERVED_MODEL_TYPES}
    assert plain == types
