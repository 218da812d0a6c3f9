"""Cases: what one prompt tells about every setting, each part's in its own way.

All settings of a case share the prompt's prefill, so that only what a policy asks to be measured,
and what its cache then predicts, is computed anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

from kvstore.calibration import Calibration
from services.evaluation.answers import ask_apart, ask_aware, ask_in_turn, aware_prompt
from services.evaluation.cell_log import Values
from services.evaluation.continuation import sample_continuation
from services.evaluation.forced_runs import Measured, later_kept, ruled
from services.evaluation.passages import Passage
from services.evaluation.prompt_record import PromptRecord
from services.evaluation.settings import Setting
from services.evaluation.tasks import Task
from services.evaluation.teacher_forcing import dense_logits
from services.runtime.model.served_model import ServedModel


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Model and inputs that every case uses."""

    served: ServedModel
    calibration: Calibration

    def record(self, prompt: tuple[int, ...]) -> PromptRecord:
        return PromptRecord(self.served, prompt, self.calibration)


class Case(Protocol):
    """One prompt of one part."""

    @property
    def part(self) -> str:
        """The part's name, as it is chosen and reported."""

    @property
    def name(self) -> str:
        """The case's name: its part, and the sizes that define it."""

    @property
    def group(self) -> str:
        """The cases that are reported as one."""

    @property
    def tokens(self) -> int:
        """Tokens of the longest sequence."""

    def measure(
        self, bench: Bench, settings: Sequence[Setting]
    ) -> Iterator[tuple[Setting, Values]]:
        """Each setting's values, as soon as they are known."""


@dataclasses.dataclass(frozen=True, slots=True)
class ForcedCase:
    """A text's own continuation, teacher-forced: `text` says where the passage is from."""

    text: str
    passage: Passage
    part = "forced"

    @property
    def name(self) -> str:
        return f"{self.text}, {self.group}"

    @property
    def group(self) -> str:
        return f"{len(self.passage.prompt)} + {len(self.passage.continuation)} tokens"

    @property
    def tokens(self) -> int:
        return len(self.passage.prompt) + len(self.passage.continuation)

    def measure(
        self, bench: Bench, settings: Sequence[Setting]
    ) -> Iterator[tuple[Setting, Values]]:
        yield from _both_ways(bench, self.passage, bench.record(self.passage.prompt), settings)


@dataclasses.dataclass(frozen=True, slots=True)
class LongCase:
    """`generated` tokens that the exact model itself goes on with, and the error as they grow."""

    text: str
    prompt: tuple[int, ...]
    generated: int
    part = "long"

    @property
    def name(self) -> str:
        return f"{self.text}, {self.group}"

    @property
    def group(self) -> str:
        return f"{len(self.prompt)} + {self.generated} generated tokens"

    @property
    def tokens(self) -> int:
        return len(self.prompt) + self.generated

    def measure(
        self, bench: Bench, settings: Sequence[Setting]
    ) -> Iterator[tuple[Setting, Values]]:
        record = bench.record(self.prompt)
        passage = sample_continuation(bench.served, record, self.prompt, self.generated)
        yield from _both_ways(bench, passage, record, settings, by_position=True)


@dataclasses.dataclass(frozen=True, slots=True)
class RetrievalCase:
    """A task, asked after compression (query-agnostic) and before it (query-aware)."""

    part: str
    task: Task

    @property
    def name(self) -> str:
        return f"{self.task.family}, {self.task.name}"

    @property
    def group(self) -> str:
        return self.task.family

    @property
    def tokens(self) -> int:
        return _task_tokens(self.task)

    def measure(
        self, bench: Bench, settings: Sequence[Setting]
    ) -> Iterator[tuple[Setting, Values]]:
        record = bench.record(self.task.context)
        aware_record = bench.record(aware_prompt(self.task))
        for setting in settings:
            policy, codec = setting.policy, setting.codec
            agnostic = ask_apart(bench.served, self.task, record.compact_timed(policy, codec))
            aware = ask_aware(bench.served, self.task, aware_record.compact_timed(policy, codec))
            yield setting, {**agnostic.values, "aware_score": aware.score}


@dataclasses.dataclass(frozen=True, slots=True)
class ConversationCase:
    """Several questions: each on the cache as it was made, and one after another."""

    task: Task
    part = "conversation"

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def group(self) -> str:
        return f"{len(self.task.context)} tokens"

    @property
    def tokens(self) -> int:
        return _task_tokens(self.task)

    def measure(
        self, bench: Bench, settings: Sequence[Setting]
    ) -> Iterator[tuple[Setting, Values]]:
        record = bench.record(self.task.context)
        for setting in settings:
            compacted = record.compact_timed(setting.policy, setting.codec)
            shared = ask_apart(bench.served, self.task, compacted)
            turns = ask_in_turn(bench.served, self.task, compacted)
            in_turn: dict[str, float | list[float]] = {
                "turns_score": turns.score,
                "turns_scores": list(turns.scores),
            }
            yield setting, shared.values | in_turn


def _task_tokens(task: Task) -> int:
    asked = (len(question.token_ids) + question.answer_tokens for question in task.questions)
    return len(task.context) + sum(asked)


def _both_ways(
    bench: Bench,
    passage: Passage,
    record: PromptRecord,
    settings: Sequence[Setting],
    *,
    by_position: bool = False,
) -> Iterator[tuple[Setting, Values]]:
    """Measure each setting as served, with rules applied, and with every later token kept."""
    exact = dense_logits(bench.served, passage.prompt, passage.continuation)
    served = ruled(bench.served, passage, record, exact, settings, _nothing)
    for setting, one in zip(settings, served, strict=True):
        kept = later_kept(bench.served, passage, record, exact, setting)
        values: dict[str, float | list[float]] = {**one.costs, **_figures(one)}
        values |= {f"kept_{what}": value for what, value in _figures(kept).items()}
        if by_position:
            values["kl_by_position"] = one.divergence.kl.tolist()
            values["kept_kl_by_position"] = kept.divergence.kl.tolist()
        yield setting, values


def _figures(one: Measured) -> dict[str, float]:
    return {
        "kl": float(one.divergence.kl.mean()),
        "top1": float(one.divergence.agreed.mean()),
        "loss": float(one.divergence.loss.mean()),
        "final_rows": one.final_rows,
    }


def _nothing() -> None:
    """A token of a continuation is no step of a case."""
