"""Q-Filters: keys that lie where the model's queries point, judged without any query.

Source: Godey et al., Q-Filters: Leveraging QK Geometry for Efficient KV Cache Compression
(arXiv 2503.02812). A head's queries spread about one direction, found once for a model
(`headwise calibrate`); the keys of highest projection on it stay, beside the latest tokens. The
paper keeps recent tokens without saying how many: here as many as SnapKV's window. It compresses
again and again while decoding; here generated tokens all stay, as with the other policies that
choose once.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from kvstore.cache import LayerShape
from kvstore.plans import AttentionProfile, LayerFacts, LayerPlan, ProfileRequest, PromptFacts
from kvstore.policies.budgeted import Budgeted, with_first_and_last
from kvstore.policies.parameters import tokens
from kvstore.policies.selection import chosen_plan, full_plan


@dataclasses.dataclass(frozen=True, slots=True)
class QFilters(Budgeted):
    """`window`: the last tokens, which stay."""

    name: ClassVar[str] = "qfilters"
    uses_filters: ClassVar[bool] = True

    window: int = tokens(64)

    def profile_request(self, tokens: int, shape: LayerShape) -> ProfileRequest | None:
        return None if self.keeps_everything() else ProfileRequest(edges=(), keys=True)

    def plan(
        self, profile: AttentionProfile | None, prompt: PromptFacts, layer: LayerFacts
    ) -> LayerPlan:
        if profile is None or profile.keys is None:
            return full_plan(prompt, layer.shape)
        assert layer.cache.filters is not None, "a policy with filters comes with its calibration"
        filters = layer.cache.filters[layer.index].to(profile.keys.device)
        projections = (profile.keys.float() @ filters[:, :, None]).squeeze(2)
        scores = with_first_and_last(projections, self.sinks, self.window, prompt, layer)
        counts = [self.rows(prompt, layer)] * layer.shape.kv_heads
        return chosen_plan(scores, counts, prompt, layer.shape, None)
