"""A layer's index as JSON: rows, rule and attention coverage of each head."""

from __future__ import annotations

import dataclasses
import itertools

from kvstore.cache import WEIGHTED_FORMAT_VERSION, RaggedLayer, canonical_json
from kvstore.errors import CorruptCache, InvalidParameter
from kvstore.rules import RetentionRule, ScoreUpdate, TokenClass
from kvstore.wire.header import MAX_COUNT
from kvstore.wire.strict_json import ObjectReader

ALL_CLASSES = int(TokenClass.SPECIAL | TokenClass.PUNCTUATION)
# mass estimated from a sample of query rows may come out a little above all of it
MAX_RECOVERED = 2.0
_RULE_FIELDS = tuple(field.name for field in dataclasses.fields(RetentionRule))


@dataclasses.dataclass(frozen=True, slots=True)
class LayerIndex:
    """Index of a layer's H heads: rows kept, rule and attention coverage of each.

    `weighted`: whether a head's rows have log-weights; empty if no head's rows have any.
    """

    rows: tuple[int, ...]
    rules: tuple[RetentionRule, ...]
    attention_coverage: tuple[float, ...]
    weighted: tuple[bool, ...] = ()

    @classmethod
    def of(cls, layer: RaggedLayer) -> LayerIndex:
        return cls(layer.head_row_counts(), layer.rules, layer.attention_coverage, layer.weighted)

    @property
    def total_rows(self) -> int:
        return sum(self.rows)

    @property
    def scored_rows(self) -> int:
        """Rows of heads whose rule needs scores."""
        pairs = zip(self.rows, self.rules, strict=True)
        return sum(rows for rows, rule in pairs if rule.needs_scores)

    @property
    def flagged_rows(self) -> int:
        """Rows of heads whose rule needs flags."""
        pairs = zip(self.rows, self.rules, strict=True)
        return sum(rows for rows, rule in pairs if rule.needs_flags)

    @property
    def weighted_rows(self) -> int:
        """Rows of heads that have log-weights."""
        return sum(itertools.compress(self.rows, self.weighted))

    def head_offsets(self) -> tuple[int, ...]:
        """The H + 1 row numbers of `RaggedLayer.head_offsets`."""
        return tuple(itertools.accumulate(self.rows, initial=0))


def encode_index(index: LayerIndex, format_version: int) -> bytes:
    """The index frame's payload. Raises `InvalidParameter` for what a reader would refuse."""
    try:
        payload = canonical_json(index_fields(index)).encode()
        read_index(ObjectReader.parse(payload, "index"), format_version)
    # ValueError: an attention coverage or a ratio that is not a number
    except (CorruptCache, ValueError) as error:
        raise InvalidParameter("layer", str(error)) from error
    return payload


def index_fields(index: LayerIndex) -> dict[str, object]:
    """The index as JSON members."""
    rules = [_rule_fields(rule) for rule in index.rules]
    fields: dict[str, object] = {
        "rows": index.rows,
        "rules": rules,
        "recovered": index.attention_coverage,
    }
    return {**fields, "weighted": index.weighted} if index.weighted else fields


def read_index(reader: ObjectReader, format_version: int) -> LayerIndex:
    """Raises `CorruptCache`, also when the lists differ in length.

    Before the format that has log-weights, `weighted` is a member like any other unknown one.
    """
    weighs = format_version >= WEIGHTED_FORMAT_VERSION and "weighted" in reader.names()
    index = LayerIndex(
        rows=reader.integers("rows", 0, MAX_COUNT),
        rules=tuple(_read_rule(rule) for rule in reader.objects("rules")),
        attention_coverage=reader.numbers("recovered", 0.0, MAX_RECOVERED),
        weighted=reader.flags("weighted") if weighs else (),
    )
    reader.close()
    if not len(index.rows) == len(index.rules) == len(index.attention_coverage):
        raise CorruptCache("index has lists of different lengths")
    if index.weighted and (len(index.weighted) != len(index.rows) or not any(index.weighted)):
        raise CorruptCache("index.weighted is neither absent nor a list for heads that are")
    return index


def _rule_fields(rule: RetentionRule) -> dict[str, object]:
    # not asdict: it copies deeply, which took half the time of writing an index
    fields = {name: getattr(rule, name) for name in _RULE_FIELDS}
    return {**fields, "protected": int(rule.protected), "score_update": rule.score_update.value}


def _read_rule(reader: ObjectReader) -> RetentionRule:
    rule = RetentionRule(
        full=reader.flag("full"),
        horizon=reader.integer("horizon", 0, MAX_COUNT),
        protected=TokenClass(reader.integer("protected", 0, ALL_CLASSES)),
        sinks=reader.integer("sinks", 0, MAX_COUNT),
        window=reader.integer("window", 0, MAX_COUNT),
        floor_rows=reader.integer("floor_rows", 0, MAX_COUNT),
        generated_from=reader.integer("generated_from", 0, MAX_COUNT),
        generated_window=reader.integer("generated_window", 0, MAX_COUNT),
        budget_rows=reader.integer("budget_rows", 0, MAX_COUNT),
        budget_ratio=reader.number("budget_ratio", 0.0, 1.0),
        budget_beyond=reader.flag("budget_beyond"),
        score_update=_read_update(reader.text("score_update")),
        score_decay=reader.number("score_decay", 0.0, 1.0),
    )
    reader.close()
    return rule


def _read_update(name: str) -> ScoreUpdate:
    try:
        return ScoreUpdate(name)
    except ValueError as error:
        raise CorruptCache("index has an unknown score update") from error
