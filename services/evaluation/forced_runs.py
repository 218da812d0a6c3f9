"""Settings side by side on one set of passages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from kvstore.calibration import Calibration
from kvstore.pool import SequencePages
from services.evaluation.passages import Passage
from services.evaluation.prompt_record import PromptRecord, bytes_kept, rows_kept
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
from services.runtime.model import ServedModel


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One setting on one or several passages, ratios of the dense cache.

    `rows` and `bytes` at the prompt's end, `final_rows` when the continuation has been fed.
    """

    name: str
    rows: float
    bytes: float
    final_rows: float
    divergence: Divergence


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
        exact = dense_logits(served, passage.prompt, passage.fed)
        parts.append([])
        for setting in settings:
            parts[-1].append(_later_kept(served, passage, record, exact, setting))
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

    The settings are fed together as a batch, each from a cache of its own.
    """
    parts = []
    for passage in passages:
        record = PromptRecord(served, passage.prompt, calibration)
        parts.append(_ruled(served, passage, record, settings, on_step))
    return _joined(parts)


def _later_kept(
    served: ServedModel,
    passage: Passage,
    record: PromptRecord,
    exact: torch.Tensor,
    setting: Setting,
) -> Measured:
    prompt, fed = len(passage.prompt), len(passage.fed)
    layers = record.compact(setting.policy)
    logits = kept_logits(served, layers, prompt, passage.fed)
    rows = rows_kept(layers, prompt)
    return Measured(
        setting.name,
        rows,
        bytes_kept(layers, prompt),
        (rows * prompt + fed) / (prompt + fed),
        compare(exact, logits, passage.targets),
    )


def _ruled(
    served: ServedModel,
    passage: Passage,
    record: PromptRecord,
    settings: Sequence[Setting],
    on_step: Callable[[], None],
) -> list[Measured]:
    prompt = len(passage.prompt)
    layers = [record.compact(setting.policy) for setting in settings]
    batch = open_pages(served, layers, prompt, len(passage.fed))
    logits = []
    for token in passage.fed:
        logits.append(feed(served, batch, (token,)))
        on_step()
    by_setting = torch.stack(logits, 1)
    exact = dense_logits(served, passage.prompt, passage.fed)
    return [
        Measured(
            setting.name,
            rows_kept(layers[number], prompt),
            bytes_kept(layers[number], prompt),
            _rows_held(batch[number]),
            compare(exact, by_setting[number], passage.targets),
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
            sum(one.rows for one in same) / len(same),
            sum(one.bytes for one in same) / len(same),
            sum(one.final_rows for one in same) / len(same),
            join([one.divergence for one in same]),
        )
        for same in zip(*parts, strict=True)
    ]
