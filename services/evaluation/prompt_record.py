"""One prompt's dense cache and profiles, from which any number of policies are compacted."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import ClassVar

from kvstore.cache import LayerShape, RaggedLayer
from kvstore.calibration import Calibration
from kvstore.compaction import compact_layer
from kvstore.plans import AttentionProfile, LayerFacts, LayerPlan, ProfileRequest, PromptFacts
from kvstore.policies import Policy
from kvstore.policies.base import Scope
from kvstore.policies.planner import CachePlanner
from kvstore.policies.selection import head_plan
from kvstore.row_codecs import MODEL_ROWS, KeyValueLayout, RowCodec
from kvstore.rules import FULL_RULE
from services.prefill.compute.prefiller import Prefiller
from services.runtime.model.served_model import ServedModel

# as `headwise prefill` does by default; nothing measured here depends on it
_CHUNK_TOKENS = 1024

_Requests = tuple[ProfileRequest | None, ...]


class _Recorder:
    """A policy that keeps every row, and the profiles that another policy would have been given."""

    name: ClassVar[str] = "recorder"
    scope: ClassVar[Scope] = Scope.LAYER
    uses_filters: ClassVar[bool] = False
    uses_sensitivity: ClassVar[bool] = False
    weighs_rows: ClassVar[bool] = False

    def __init__(self, policy: Policy) -> None:
        self.profiles: list[AttentionProfile | None] = []
        self._policy = policy

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        return self._policy.profile_request(tokens, shape)

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        self.profiles.append(profile)
        # without the layer's horizon: the policies to come decide about all rows
        everything = head_plan(FULL_RULE, None, prompt, 1.0)
        return LayerPlan(layer.shape, (everything,) * layer.shape.kv_heads)

    @property
    def retrieval_ratio(self) -> float:
        return 0.0

    def parameters(self) -> dict[str, object]:
        return {}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Compacted:
    """A prompt's compact layers, and the seconds of the prefill that made them.

    `prefill_seconds` the model alone, `profile_seconds` what the policy asked to be measured,
    `compact_seconds` its decision and the copy of the rows. The first two are those of the one
    prefill that all policies with the same requests share.
    """

    layers: list[RaggedLayer]
    tokens: int
    prefill_seconds: float
    profile_seconds: float
    compact_seconds: float

    @property
    def costs(self) -> dict[str, float]:
        """Real size and time, as every measurement of quality is accompanied by them."""
        return {
            "rows": rows_kept(self.layers, self.tokens),
            "bytes": bytes_kept(self.layers, self.tokens),
            "fp16_bytes": fp16_bytes_kept(self.layers, self.tokens),
            "kept_bytes": sum(layer.nbytes for layer in self.layers),
            "prefill_seconds": self.prefill_seconds,
            "profile_seconds": self.profile_seconds,
            "compact_seconds": self.compact_seconds,
        }


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Profiled:
    """The layers' profiles, and what the prefill that made them took."""

    profiles: list[AttentionProfile | None]
    prefill_seconds: float
    profile_seconds: float


class PromptRecord:
    """Records of one prompt's prefill; policies with equal requests share a profile."""

    def __init__(
        self,
        served: ServedModel,
        token_ids: tuple[int, ...],
        calibration: Calibration | None = None,
    ) -> None:
        self._served = served
        self._calibration = calibration or Calibration()
        self._token_ids = token_ids
        self._facts = PromptFacts(len(token_ids), served.tokenizer.classify(token_ids))
        self._dense: dict[int, RaggedLayer] = {}
        self._profiled: dict[_Requests, _Profiled] = {}

    def compact(self, policy: Policy, codec: RowCodec = MODEL_ROWS) -> list[RaggedLayer]:
        """The layers that a prefill with `policy` would ship, coded by `codec`."""
        return self.compact_timed(policy, codec).layers

    def compact_timed(self, policy: Policy, codec: RowCodec = MODEL_ROWS) -> Compacted:
        """The same, and what it took."""
        planner = CachePlanner(
            policy,
            self._facts,
            self._served.shapes,
            lambda shape: KeyValueLayout(codec, shape.head_size, self._served.dtype).row_bytes,
            self._calibration,
        )
        profiled = self._profiled_for(policy)
        begin = time.perf_counter()
        plans: dict[int, LayerPlan] = {}
        for profile in profiled.profiles:
            plans.update(planner.add(profile))
        layers = [
            self._compact_layer(plan, self._dense[index], codec) for index, plan in plans.items()
        ]
        return Compacted(
            layers,
            self._facts.tokens,
            profiled.prefill_seconds,
            profiled.profile_seconds,
            time.perf_counter() - begin,
        )

    def _compact_layer(
        self, plan: LayerPlan, everything: RaggedLayer, codec: RowCodec
    ) -> RaggedLayer:
        dense = (plan.shape.kv_heads, self._facts.tokens, plan.shape.head_size)
        return compact_layer(
            everything.keys.view(dense),
            everything.values.view(dense),
            plan,
            self._facts.classes,
            codec,
        )

    def _profiled_for(self, policy: Policy) -> _Profiled:
        shapes, tokens = self._served.shapes, self._facts.tokens
        requests = tuple(policy.profile_request(tokens, shape) for shape in shapes)
        if requests not in self._profiled and not any(requests) and self._profiled:
            # nothing to measure: any prefill will do
            seconds = next(iter(self._profiled.values())).prefill_seconds
            self._profiled[requests] = _Profiled([None] * len(shapes), seconds, 0.0)
        if requests not in self._profiled:
            self._profiled[requests] = self._prefill(policy)
        return self._profiled[requests]

    def _prefill(self, policy: Policy) -> _Profiled:
        recorder = _Recorder(policy)
        prefiller = Prefiller(
            self._served,
            self._token_ids,
            recorder,
            chunk_tokens=_CHUNK_TOKENS,
            emit=self._dense.__setitem__,
            progress=lambda done: None,
            stop=threading.Event(),
        )
        prefiller.run()
        seconds = prefiller.clock.seconds
        return _Profiled(recorder.profiles, seconds("prefill"), seconds("profile"))


def rows_kept(layers: list[RaggedLayer], tokens: int) -> float:
    """Rows kept over those of the dense cache of `tokens`."""
    return sum(layer.rows for layer in layers) / sum(layer.dense_rows(tokens) for layer in layers)


def bytes_kept(layers: list[RaggedLayer], tokens: int) -> float:
    """Real bytes, positions, scores and flags included, over dense keys and values."""
    dense = sum(layer.dense_rows(tokens) * layer.dense_row_bytes for layer in layers)
    return sum(layer.nbytes for layer in layers) / dense


def fp16_bytes_kept(layers: list[RaggedLayer], tokens: int) -> float:
    """Bytes over those of dense float16 keys and values, whatever dtype was computed in.

    Coded rows count as they are, uncoded ones as if they were of 16 bits; all else is counted.
    """
    dense = sum(2 * 2 * layer.dense_rows(tokens) * layer.head_size for layer in layers)
    return sum(_fp16_bytes(layer) for layer in layers) / dense


def _fp16_bytes(layer: RaggedLayer) -> int:
    if layer.layout is not None:
        return layer.nbytes
    return layer.nbytes - layer.rows * (layer.dense_row_bytes - 4 * layer.head_size)
