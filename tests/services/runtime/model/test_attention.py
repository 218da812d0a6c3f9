"""Every served model type, its attention computed by a hook, against transformers' eager one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from kvstore.attention_input import AttentionInput
from services.runtime.model import attention
from services.runtime.model.allow_list import SERVED_MODEL_TYPES, layer_shapes
from services.runtime.model.forward_pass import forward
from services.runtime.model.model_errors import ModelRefused

BATCH, CHUNKS, STEPS, VOCABULARY = 2, (9, 1, 7), 10, 97
# smaller than the first chunk, so that every chunk and every step looks past it
WINDOW = 5

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_MIXED = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
_QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": WINDOW}
VARIANTS: dict[str, dict[str, object]] = {
    "llama": {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True},
    "mistral": {"sliding_window": WINDOW, "head_dim": 24},
    "qwen2": {**_QWEN_WINDOW, "max_window_layers": 2},
    "qwen3": {**_QWEN_WINDOW, "layer_types": _MIXED, "head_dim": 24},
    "gemma3_text": {
        "sliding_window": WINDOW,
        "layer_types": _MIXED,
        "head_dim": 24,
        "query_pre_attn_scalar": 48,
        "final_logit_softcapping": 3.0,
    },
    "phi3": {"sliding_window": WINDOW, "pad_token_id": 0},
    "smollm3": {**_QWEN_WINDOW, "no_rope_layers": [1, 0, 1, 0], "pad_token_id": 0},
    "mixtral": {"sliding_window": WINDOW, "num_local_experts": 4},
    "qwen3_moe": {
        **_QWEN_WINDOW,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "head_dim": 16,
    },
}
SLIDING_LAYERS = {
    "llama": (False,) * 4,
    "mistral": (True,) * 4,
    "qwen2": (False, False, True, True),
    "qwen3": (False, True, False, True),
    "gemma3_text": (False, True, False, True),
    "phi3": (True,) * 4,
    "smollm3": (False, True, False, True),
    "mixtral": (True,) * 4,
    "qwen3_moe": (True,) * 4,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads only wait for each other over tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class DenseHook:
    """Keeps every key and value, and attends over them as the definition says."""

    def __init__(self, ignore_windows: bool = False) -> None:
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._ignore_windows = ignore_windows

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        q, k, v = inputs.q, inputs.k, inputs.v
        if inputs.layer in self.kept:
            k = torch.cat((self.kept[inputs.layer][0], k), 2)
            v = torch.cat((self.kept[inputs.layer][1], v), 2)
        self.kept[inputs.layer] = (k, v)
        group = q.shape[1] // k.shape[1]
        logits = q @ k.repeat_interleave(group, 1).mT * inputs.scale
        total, fed = k.shape[2], q.shape[2]
        distance = torch.arange(total - fed, total)[:, None] - torch.arange(total)
        hidden = distance < 0
        if inputs.sliding_window is not None and not self._ignore_windows:
            hidden |= distance >= inputs.sliding_window
        weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        return (weights @ v.repeat_interleave(group, 1)).transpose(1, 2)


def _config(model_type: str) -> AutoConfig:
    return AutoConfig.for_model(
        model_type,
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        # large weights make attention peaked, so that what it sees matters
        initializer_range=0.1,
        **copy.deepcopy(VARIANTS[model_type]),
    )


def _build(model_type: str, implementation: str) -> PreTrainedModel:
    torch.manual_seed(7)
    attention.register()
    return AutoModelForCausalLM.from_config(
        _config(model_type), attn_implementation=implementation
    ).eval()


def _served(model_type: str) -> SimpleNamespace:
    model = _build(model_type, "headwise")
    return SimpleNamespace(model=model, shapes=layer_shapes(model.config))


def _tokens() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(1, VOCABULARY, (BATCH, sum(CHUNKS) + STEPS), generator=generator)


def _feed(served: SimpleNamespace, hook: DenseHook) -> dict[int, torch.Tensor]:
    """The prompt in chunks, then single tokens; logits by the position of the last token fed."""
    tokens, found, first = _tokens(), {}, 0
    for size in CHUNKS + (1,) * STEPS:
        last = first + size
        positions = torch.arange(first, last).expand(BATCH, size)
        logits = forward(served, tokens[:, first:last], positions, hook, logits=True)
        assert logits is not None
        found[last - 1], first = logits, last
    return found


def _eager(model_type: str) -> torch.Tensor:
    with torch.inference_mode():
        return _build(model_type, "eager")(_tokens(), use_cache=False).logits


def _worst(found: dict[int, torch.Tensor], expected: torch.Tensor) -> float:
    return max(float((logits - expected[:, at]).abs().max()) for at, logits in found.items())


def test_every_served_type_is_tried_here() -> None:
    assert set(VARIANTS) == SERVED_MODEL_TYPES


@pytest.mark.parametrize("model_type", sorted(VARIANTS))
def test_chunked_prefill_and_single_steps_agree_with_eager(model_type: str) -> None:
    found, expected = _feed(_served(model_type), DenseHook()), _eager(model_type)
    assert float(expected.std()) > 0.05
    assert _worst(found, expected) <= 1e-5


@pytest.mark.parametrize("model_type", [name for name, s in SLIDING_LAYERS.items() if any(s)])
def test_a_hook_that_ignores_windows_differs(model_type: str) -> None:
    found = _feed(_served(model_type), DenseHook(ignore_windows=True))
    assert _worst(found, _eager(model_type)) > 1e-3


@pytest.mark.parametrize("model_type", sorted(VARIANTS))
def test_shapes_say_which_layers_slide(model_type: str) -> None:
    shapes = layer_shapes(_config(model_type))
    expected = tuple(WINDOW if slides else None for slides in SLIDING_LAYERS[model_type])
    assert tuple(shape.sliding_window for shape in shapes) == expected
    assert {(shape.kv_heads, shape.query_heads) for shape in shapes} == {(2, 4)}


def test_without_logits_the_hook_still_sees_every_layer() -> None:
    served, hook = _served("llama"), DenseHook()
    positions = torch.arange(6).expand(BATCH, 6)
    assert forward(served, _tokens()[:, :6], positions, hook, logits=False) is None
    assert {layer: k.shape[2] for layer, (k, _) in hook.kept.items()} == dict.fromkeys(range(4), 6)


@pytest.mark.parametrize(
    "keywords", [{"s_aux": torch.ones(4)}, {"softcap": 30.0}, {"output_attentions": True}]
)
def test_an_unknown_keyword_is_refused(keywords: dict[str, object]) -> None:
    served = _served("llama")
    arguments = {"headwise": DenseHook(), "headwise_shapes": served.shapes, "use_cache": False}
    with pytest.raises(ModelRefused, match=next(iter(keywords))):
        served.model.get_decoder()(_tokens(), **arguments, **keywords)


def test_an_unknown_keyword_that_is_none_is_accepted() -> None:
    served = _served("llama")
    arguments = {"headwise": DenseHook(), "headwise_shapes": served.shapes, "use_cache": False}
    output = served.model.get_decoder()(_tokens(), **arguments, s_aux=None)
    assert output.last_hidden_state.shape == (*_tokens().shape, 64)


def test_a_layer_of_another_shape_is_refused() -> None:
    served = _served("mistral")
    served.shapes = layer_shapes(_config("llama"))
    with pytest.raises(AssertionError):
        forward(served, _tokens(), torch.arange(27).expand(2, 27), DenseHook(), False)


def test_an_error_in_the_hook_leaves_the_forward_pass() -> None:
    class Cancelled(Exception):
        pass

    class CancellingHook:
        def attend(self, inputs: AttentionInput) -> torch.Tensor:
            raise Cancelled(inputs.layer)

    with pytest.raises(Cancelled, match="0"):
        forward(_served("qwen3"), _tokens(), torch.arange(27).expand(2, 27), CancellingHook(), True)
