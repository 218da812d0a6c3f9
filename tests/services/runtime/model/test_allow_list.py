"""Models that would give wrong answers are refused, with the reason."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from services.runtime.model.allow_list import layer_shapes, require_served
from services.runtime.model.model_errors import ModelRefused

_LONG_FACTORS = {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8}
_PHI3 = {"hidden_size": 64, "num_attention_heads": 4, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("llama4_text", "chunked attention"),
        ("gpt_oss", "attention sinks"),
        ("qwen3_next", "linear-attention"),
        ("gemma2", "softcapping"),
        ("deepseek_v3", "differ in size"),
        ("gpt2", "absolute positions"),
        ("falcon", "not checked"),
        ("t5", "encoder-decoder"),
    ],
)
def test_a_type_that_is_not_served_is_refused_with_its_reason(model_type: str, reason: str) -> None:
    with pytest.raises(ModelRefused, match=reason) as refusal:
        require_served(AutoConfig.for_model(model_type))
    assert model_type.split("_")[0] in str(refusal.value)


@pytest.mark.parametrize(
    ("model_type", "options", "reason"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("phi3", {**_PHI3, "rope_scaling": {"type": "longrope", **_LONG_FACTORS}}, "'longrope'"),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    "full_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6},
                }
            },
            "'dynamic'",
        ),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "bidirectional"),
        ("llama", {"is_causal": False}, "bidirectional"),
        ("llama", {"v_head_dim": 32}, "v_head_dim"),
    ],
)
def test_a_feature_that_is_not_served_is_refused_within_a_served_type(
    model_type: str, options: dict[str, object], reason: str
) -> None:
    config = AutoConfig.for_model(model_type, **options)
    with pytest.raises(ModelRefused, match=reason):
        layer_shapes(config)


def test_a_layer_type_that_is_not_served_is_refused() -> None:
    config = AutoConfig.for_model("qwen3", num_hidden_layers=2)
    config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(ModelRefused, match="chunked_attention"):
        require_served(config)


@pytest.mark.parametrize("rope_type", ["linear", "yarn"])
def test_static_rope_scaling_is_served(rope_type: str) -> None:
    rope = {"rope_type": rope_type, "factor": 2.0, "rope_theta": 1e4}
    require_served(AutoConfig.for_model("llama", rope_parameters=rope))
