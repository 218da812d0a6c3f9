"""The smallest or the best setting of one family that keeps within a bound, by bisection."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch

from kvstore.errors import InvalidParameter
from kvstore.policies import parse_policy
from kvstore.row_codecs import MODEL_ROWS, RowCodec
from services.evaluation.cases import Bench
from services.evaluation.forced_runs import ruled
from services.evaluation.passages import Passage
from services.evaluation.prompt_record import PromptRecord
from services.evaluation.settings import Setting
from services.evaluation.teacher_forcing import dense_logits

# halvings of the range: its width is then below a hundredth of it
STEPS = 7
# the share of the rows that a budget leaves at least
_LEAST_BUDGET = 0.02
# nines of a recovery: .5 to .9999
_LEAST_NINES, _MOST_NINES = 0.3, 4.0


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """A policy whose one parameter says how much to keep; `fixed` and `codec` are given.

    A place from 0, the smallest cache, to 1, the largest, is a value of the parameter.
    """

    policy: str
    parameter: str
    fixed: Mapping[str, object]
    codec: RowCodec = MODEL_ROWS

    def at(self, place: float) -> Setting:
        value = self._value(place)
        written = {**self.fixed, self.parameter: value}
        name = ",".join(f"{key}={given}" for key, given in written.items())
        coded = "" if self.codec == MODEL_ROWS else f"@{self.codec.name}"
        policy = parse_policy(self.policy, written)
        return Setting(f"{self.policy}:{name}{coded}", policy, self.codec)

    def _value(self, place: float) -> float:
        if self.parameter == "budget":
            return round(math.pow(_LEAST_BUDGET, 1 - place), 4)
        nines = _LEAST_NINES + place * (_MOST_NINES - _LEAST_NINES)
        return round(1 - math.pow(10, -nines), 5)


def family_of(policy: str, fixed: Mapping[str, object], codec: RowCodec = MODEL_ROWS) -> Family:
    """Raises `InvalidParameter` for a policy of which no parameter says how much to keep."""
    known = parse_policy(policy, fixed).parameters()
    for parameter in ("recovery", "budget"):
        if parameter in known and parameter not in fixed:
            return Family(policy, parameter, fixed, codec)
    raise InvalidParameter("policy", f"{policy} leaves neither recovery nor budget to be found")


@dataclasses.dataclass(frozen=True, slots=True)
class Tried:
    """A setting as it is served, on all texts: mean KL in nats, bytes of the dense cache's."""

    setting: Setting
    kl: float
    bytes: float


class Trials:
    """Measures settings on the same texts, whose prefill and exact predictions are kept."""

    def __init__(self, bench: Bench, passages: Sequence[Passage]) -> None:
        self._bench = bench
        self._passages = passages
        self._records = [bench.record(passage.prompt) for passage in passages]
        self._exact = [dense_logits(bench.served, p.prompt, p.continuation) for p in passages]

    def measure(self, setting: Setting, on_token: Callable[[], None]) -> Tried:
        with torch.inference_mode():
            parts = [
                self._one(passage, record, exact, setting, on_token)
                for passage, record, exact in zip(
                    self._passages, self._records, self._exact, strict=True
                )
            ]
        kl = sum(kl for kl, _ in parts) / len(parts)
        return Tried(setting, kl, sum(size for _, size in parts) / len(parts))

    def _one(
        self,
        passage: Passage,
        record: PromptRecord,
        exact: torch.Tensor,
        setting: Setting,
        on_token: Callable[[], None],
    ) -> tuple[float, float]:
        (one,) = ruled(self._bench.served, passage, record, exact, (setting,), on_token)
        return float(one.divergence.kl.mean()), one.bytes


def smallest_within_kl(
    family: Family, most_kl: float, measure: Callable[[Setting], Tried]
) -> Tried | None:
    """The smallest cache found whose KL is at most `most_kl` nats; None if no size gets there."""
    return _bisect(family, measure, lambda tried: tried.kl <= most_kl, largest=False)


def best_within_bytes(
    family: Family, most_bytes: float, measure: Callable[[Setting], Tried]
) -> Tried | None:
    """The largest cache found of at most `most_bytes` of the dense one; None if there is none."""
    return _bisect(family, measure, lambda tried: tried.bytes <= most_bytes, largest=True)


def _bisect(
    family: Family,
    measure: Callable[[Setting], Tried],
    fits: Callable[[Tried], bool],
    *,
    largest: bool,
) -> Tried | None:
    """Sizes grow with the place, and KL falls: so what fits lies to one side of some place."""
    low, high = 0.0, 1.0
    # the end at which the bound is easiest to keep
    found = measure(family.at(low if largest else high))
    if not fits(found):
        return None
    for _ in range(STEPS):
        middle = (low + high) / 2
        tried = measure(family.at(middle))
        if fits(tried):
            found = tried
        if fits(tried) == largest:
            low = middle
        else:
            high = middle
    return found
