"""Few rows through the kernel, against float64, and whole models against their untouched selves."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from services.runtime.model.allow_list import SERVED_MODEL_TYPES
from services.runtime.model.small_batches import (
    SiblingLinear,
    SmallBatchLinear,
    prepare_for_small_batches,
)
from services.runtime.model.small_linear import MAX_ROWS, small_linear
from services.runtime.model.small_norm import MAX_VALUES, small_rms_norm
from services.runtime.model.weights_digest import weights_digest

VOCABULARY = 101
# f32 sums in another order; logits are of the order of 1
TOLERANCE = 1e-5
_EXPERTS = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 36},
}


def _model(model_type: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(5)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=VOCABULARY,
        hidden_size=60,
        intermediate_size=52,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=0,
        initializer_range=0.1,
        **_EXPERTS.get(model_type, {}),
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            # weights of all ones, or of zeros, would hide what is done with them
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    return model


def _logits(model: PreTrainedModel, rows: int, tokens: int) -> torch.Tensor:
    ids = 1 + torch.arange(rows * tokens).reshape(rows, tokens) % (VOCABULARY - 1)
    with torch.inference_mode():
        return model(ids, use_cache=False).logits


def _prepared(model: PreTrainedModel) -> PreTrainedModel:
    prepared = copy.deepcopy(model)
    prepare_for_small_batches(prepared)
    return prepared


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, MAX_ROWS + 1),
    inputs=st.sampled_from([1, 15, 16, 63, 576]),
    outputs=st.sampled_from([1, 3, 4, 5, 64, 257]),
    with_bias=st.booleans(),
)
def test_a_product_equals_float64(rows: int, inputs: int, outputs: int, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(rows * outputs + inputs)
    x = torch.randn(rows, 1, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator) if with_bias else None
    exact = torch.nn.functional.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    found = small_linear(x, weight, bias)
    assert found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-6 * inputs**0.5 + 1e-6)


@pytest.mark.parametrize("size", [1, 15, 64, 576])
def test_a_norm_equals_float64(size: int) -> None:
    x, weight = torch.randn(3, 2, size), torch.randn(size)
    exact = torch.nn.functional.rms_norm(x.double(), (size,), weight.double(), 1e-5)
    torch.testing.assert_close(
        small_rms_norm(x, weight, 1e-5).double(), exact, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("model_type", sorted(SERVED_MODEL_TYPES))
def test_norms_of_another_definition_stay_unchanged(model_type: str) -> None:
    kinds = {type(module).__name__ for module in _prepared(_model(model_type)).modules()}
    small = any(kind.startswith("SmallBatch") and kind.endswith("RMSNorm") for kind in kinds)
    # gemma's weights are differences from one
    assert small == (model_type != "gemma3_text")


def test_finite_inputs_give_finite_outputs() -> None:
    x, weight = torch.ones(2, 64), torch.ones(8, 64)
    x[1, 3], weight[5, 7] = torch.nan, torch.inf
    found = small_linear(x, weight, None)
    assert found[1].isnan().all()
    assert found[0].isinf().tolist() == [n == 5 for n in range(8)]


def test_non_contiguous_rows_are_accepted() -> None:
    x, weight = torch.randn(3, 5, 64), torch.randn(8, 64)
    torch.testing.assert_close(small_linear(x[:, -1:], weight, None), x[:, -1:] @ weight.t())


@pytest.mark.parametrize("model_type", sorted(SERVED_MODEL_TYPES))
def test_a_prepared_model_gives_the_logits_of_the_untouched_one(model_type: str) -> None:
    model = _model(model_type)
    prepared = _prepared(model)
    assert any(isinstance(module, SmallBatchLinear) for module in prepared.modules())
    assert weights_digest(prepared) == weights_digest(model)
    for rows in (1, 3, 8):
        expected = _logits(model, rows, 1)
        assert float(expected.std()) > 0.05
        torch.testing.assert_close(_logits(prepared, rows, 1), expected, rtol=0, atol=TOLERANCE)


def test_more_rows_than_the_limit_are_computed_by_torch() -> None:
    model = _model("llama")
    tokens = MAX_VALUES // model.config.hidden_size + 1
    assert tokens > MAX_ROWS
    assert torch.equal(_logits(_prepared(model), 1, tokens), _logits(model, 1, tokens))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_of_another_dtype_stay_unchanged(dtype: torch.dtype) -> None:
    model = _model("llama", dtype)
    prepared = _prepared(model)
    assert not any(isinstance(module, SmallBatchLinear) for module in prepared.modules())
    assert torch.equal(_logits(prepared, 2, 1), _logits(model, 2, 1))


def test_subclasses_of_linear_stay_unchanged() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    layers = torch.nn.Sequential(Doubled(4, 4), torch.nn.Linear(4, 4))
    prepare_for_small_batches(layers)
    assert [type(layer) for layer in layers] == [Doubled, SmallBatchLinear]


class Gated(torch.nn.Module):
    def __init__(self, inputs: int = 8) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = torch.nn.Linear(8, 4), torch.nn.Linear(inputs, 6)


@torch.inference_mode()
def test_each_sibling_multiplies_its_own_input() -> None:
    module = Gated()
    expected = copy.deepcopy(module)
    prepare_for_small_batches(module)
    assert isinstance(module.up_proj, SiblingLinear)
    x, other = torch.randn(2, 3, 8)
    for second in (x, other, x):
        # the same tensor, other contents
        x.neg_()
        torch.testing.assert_close(module.gate_proj(x), expected.gate_proj(x))
        torch.testing.assert_close(module.up_proj(second), expected.up_proj(second))
    torch.testing.assert_close(module.up_proj(other), expected.up_proj(other))


def test_siblings_hold_no_weight_twice() -> None:
    module = Gated()
    weight = module.up_proj.weight
    prepare_for_small_batches(module)
    assert module.up_proj.weight is weight
    gate = module.gate_proj.weight
    assert gate.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()


def test_layers_of_different_inputs_are_no_siblings() -> None:
    module = Gated(inputs=9)
    prepare_for_small_batches(module)
    assert type(module.up_proj) is type(module.gate_proj) is SmallBatchLinear


def test_prepared_layers_have_gradients() -> None:
    layer = torch.nn.Linear(8, 8)
    prepare_for_small_batches(layer)
    layer(torch.ones(1, 8)).sum().backward()
    assert layer.weight.grad is not None
