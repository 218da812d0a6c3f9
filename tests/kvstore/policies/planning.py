"""Prompts of random heads, profiled and planned by any policy as prefill does it."""

from __future__ import annotations

import dataclasses

import torch

from kvstore.cache import LayerShape
from kvstore.calibration import Calibration, RetrievalScores
from kvstore.kernels.prefill_attention.op import prefill_attention
from kvstore.plans import LayerPlan, PromptFacts, ReferenceAttention
from kvstore.policies import Policy
from kvstore.policies.planner import CachePlanner
from kvstore.profiling import Profiler
from kvstore.rules import TokenClass

SCALE = 0.25
TOKENS = 150
LAYERS = 3

# every registered policy, compressing hard; one that is missing here fails the matrix
SMALL: dict[str, dict[str, object]] = {
    "full": {},
    "fastgen": {"recovery": 0.5, "floor_rows": 8},
    "coverage": {"recovery": 0.6, "floor_rows": 8, "windows": [8, 16, 32]},
    "streaming_llm": {"budget": 0.3, "floor_rows": 8},
    "h2o": {"budget": 0.3, "floor_rows": 8},
    "snapkv": {"budget": 0.3, "floor_rows": 8, "window": 8},
    "adakv": {"budget": 0.3, "floor_rows": 8, "window": 8},
    "pyramidkv": {"budget": 0.3, "floor_rows": 8, "window": 8},
    "pyramid_infer": {"budget": 0.3, "floor_rows": 8, "window": 8},
    "chunkkv": {"budget": 0.3, "floor_rows": 8, "window": 8, "reuse": 2},
    "sagekv": {"budget": 0.3, "floor_rows": 8},
    "qfilters": {"budget": 0.3, "floor_rows": 8, "window": 8},
    "razor_attention": {"least_window": 20, "floor_rows": 8},
    "cascading": {"budget": 0.3, "floor_rows": 8},
    "citrus": {"budget": 0.3, "floor_rows": 8, "instruction_tokens": 8},
    "vlcache": {"budget": 0.3, "floor_rows": 8, "window": 8},
    "uncomp": {"budget": 0.3, "floor_rows": 8, "window": 8},
    "zeromerge": {"budget": 0.3, "floor_rows": 8},
    "kvmerger": {"budget": 0.3, "floor_rows": 8},
    "reconstruction": {"budget": 0.3, "floor_rows": 8},
    "attention_matching": {"budget": 0.3, "floor_rows": 8},
    "lookback": {"budget": 0.3, "floor_rows": 8, "distance": 16, "recent": 16},
}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Attended:
    """Tensors of one layer: `q` `[HQ, T, D]`, `k` and `v` `[H, T, D]`."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    shape: LayerShape


def facts_of(n: int) -> PromptFacts:
    """One token in eleven is punctuation, one in 37 special."""
    classes = torch.zeros(n, dtype=torch.uint8)
    classes[::11] = int(TokenClass.PUNCTUATION)
    classes[::37] = int(TokenClass.SPECIAL)
    return PromptFacts(n, classes)


def layers_of(
    seed: int, n: int = TOKENS, windows: tuple[int | None, ...] = (None,) * LAYERS
) -> list[Attended]:
    """A layer per window: two KV heads of two query heads; some columns draw attention."""
    torch.manual_seed(seed)
    found = []
    for window in windows:
        q, k = torch.randn(4, n, 16), torch.randn(2, n, 16)
        k[:, :: max(1, n // 7)] += q.mean() + 0.5
        v = torch.randn(2, n, 16) * torch.rand(2, n, 1) * 3
        found.append(Attended(q * 2, k, v, LayerShape(2, 4, 16, window)))
    return found


def calibration_of(layers: list[Attended]) -> Calibration:
    """Heads retrieve the better the later they come, and matter less; filters are mean queries."""
    order = torch.arange(2 * len(layers)).view(-1, 2).float()
    filters = tuple(layer.q.mean(1).view(2, 2, -1).mean(1) for layer in layers)
    sensitivity = tuple(
        torch.linspace(3, 1, layer.shape.query_heads) / (number + 1)
        for number, layer in enumerate(layers)
    )
    return Calibration(RetrievalScores(tuple(order), tuple(order)), filters, sensitivity)


def plans_of(policy: Policy, layers: list[Attended], n: int = TOKENS) -> list[LayerPlan]:
    """Return the plans that a prefill of these layers would make."""
    shapes = tuple(layer.shape for layer in layers)
    planner = CachePlanner(
        policy, facts_of(n), shapes, lambda s: 8 * s.head_size, calibration_of(layers)
    )
    plans: dict[int, LayerPlan] = {}
    for index, layer in enumerate(layers):
        plans.update(planner.add(_profile(planner, index, layer, n)))
    return [plans[index] for index in range(len(layers))]


def _profile(planner, index, layer, n):
    request = planner.request(index)
    if request is None:
        return None
    window = layer.shape.sliding_window
    _, lse = prefill_attention(layer.q, layer.k, layer.v, scale=SCALE, sliding_window=window)
    profiler = Profiler(request, layer.shape, n)
    profiler.observe(layer.q, layer.k, layer.v, lse, 0, SCALE)
    profile = profiler.profile()
    peaks = repetition_peaks(layer, n) if request.reconstruct else None
    # the same queries once more after the prompt
    reference = ReferenceAttention(layer.q, n + torch.arange(n), layer.k, layer.v, SCALE)
    reference = reference if request.reference_queries else profile.reference
    return dataclasses.replace(profile, peaks=peaks, reference=reference)


def repetition_peaks(layer: Attended, n: int) -> torch.Tensor:
    """Return the attention of the prompt's queries repeated after the prompt, f32 `[H, G, T]`."""
    q, k = layer.q.double(), layer.k.double().repeat_interleave(2, 0)
    distance = n + torch.arange(n)[:, None] - torch.arange(n)
    hidden = distance >= (layer.shape.sliding_window or 2 * n)
    logits = (q @ k.mT * SCALE).masked_fill(hidden, -torch.inf)
    total = torch.cat([logits, q.new_zeros(q.shape[0], n, 1)], -1).softmax(-1)[:, :, :-1]
    return total.amax(1).view(layer.shape.kv_heads, -1, n).float()
