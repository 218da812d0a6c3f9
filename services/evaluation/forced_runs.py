"""Settings side by side on one set of passages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch

from kvstore.calibration import Calibration
from kvstore.pool import SequencePages
from services.evaluation.passages import Passage
from services.evaluation.prompt_record import PromptRecord
from services.evaluation.settings import Setting
from services.evaluation.teacher_forcing import (
    Divergence,
    compare,
    dense_logits,
    feed,
    join,
    kept_logits,
    open_pages,
)
from services.runtime.model.served_model import ServedModel


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One setting on one or several passages, ratios of the dense cache.

    `rows` and `bytes` at the prompt's end, `final_rows` when the continuation has been fed;
    `costs` what `Compacted.costs` says, on average.
    """

    name: str
    final_rows: float
    divergence: Divergence
    costs: Mapping[str, float]

    @property
    def rows(self) -> float:
        return self.costs["rows"]

    @property
    def bytes(self) -> float:
        return self.costs["bytes"]


def with_later_kept(
    served: ServedModel,
    passages: Sequence[Passage],
    settings: Sequence[Setting],
    on_step: Callable[[], None],
    calibration: Calibration | None = None,
) -> list[Measured]:
    """Every fed token stays; one step a passage and setting."""
    parts: list[list[Measured]] = []
    for passage in passages:
        record = PromptRecord(served, passage.prompt, calibration)
        exact = dense_logits(served, passage.prompt, passage.continuation)
        parts.append([])
        for setting in settings:
            parts[-1].append(later_kept(served, passage, record, exact, setting))
            on_step()
    return _joined(parts)


def with_rules(
    served: ServedModel,
    passages: Sequence[Passage],
    settings: Sequence[Setting],
    on_step: Callable[[], None],
    calibration: Calibration | None = None,
) -> list[Measured]:
    """Each head's rule applies after every fed token; one step a passage and token.

    Each setting is fed from a cache of its own.
    """
    parts = []
    for passage in passages:
        record = PromptRecord(served, passage.prompt, calibration)
        exact = dense_logits(served, passage.prompt, passage.continuation)
        parts.append(ruled(served, passage, record, exact, settings, on_step))
    return _joined(parts)


def later_kept(
    served: ServedModel,
    passage: Passage,
    record: PromptRecord,
    exact: torch.Tensor,
    setting: Setting,
) -> Measured:
    """Every fed token stays; `exact` are the passage's dense logits `[m, V]`."""
    prompt_tokens, continuation_tokens = len(passage.prompt), len(passage.continuation)
    compacted = record.compact_timed(setting.policy, setting.codec)
    logits = kept_logits(served, compacted.layers, prompt_tokens, passage.continuation)
    costs = compacted.costs
    return Measured(
        setting.name,
        (costs["rows"] * prompt_tokens + continuation_tokens)
        / (prompt_tokens + continuation_tokens),
        compare(exact, logits, passage.targets),
        costs,
    )


def ruled(
    served: ServedModel,
    passage: Passage,
    record: PromptRecord,
    exact: torch.Tensor,
    settings: Sequence[Setting],
    on_step: Callable[[], None],
) -> list[Measured]:
    """The rules apply after every fed token; the settings are fed together as a batch."""
    made = [record.compact_timed(setting.policy, setting.codec) for setting in settings]
    layers = [compacted.layers for compacted in made]
    batch = open_pages(served, layers, len(passage.prompt), len(passage.continuation))
    logits = []
    for token in passage.continuation:
        logits.append(feed(served, batch, (token,)))
        on_step()
    by_setting = torch.stack(logits, 1)
    return [
        Measured(
            setting.name,
            _rows_held(batch[number]),
            compare(exact, by_setting[number], passage.targets),
            made[number].costs,
        )
        for number, setting in enumerate(settings)
    ]


def _rows_held(pages: SequencePages) -> float:
    counts = [rows for layer in pages.row_counts() for rows in layer]
    return sum(counts) / (len(counts) * pages.length)


def _joined(parts: Sequence[Sequence[Measured]]) -> list[Measured]:
    """The passages' results of each setting as one; the passages are equally long."""
    return [
        Measured(
            same[0].name,
            sum(one.final_rows for one in same) / len(same),
            join([one.divergence for one in same]),
            {what: sum(one.costs[what] for one in same) / len(same) for what in same[0].costs},
        )
        for same in zip(*parts, strict=True)
    ]
