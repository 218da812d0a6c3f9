"""A model is served with all of its weights, and with no others, or refused by their names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from services.runtime.model.allow_list import SERVED_MODEL_TYPES
from services.runtime.model.model_errors import ModelRefused
from services.runtime.model.served_model import load_model

Weights = dict[str, torch.Tensor]
_UP = "model.layers.1.mlp.up_proj.weight"
_SIZES = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "max_position_embeddings": 128,
}
_EXPERTS = {"num_local_experts": 2, "num_experts": 2, "moe_intermediate_size": 16}
_FAMILIES: dict[str, tuple[type, type]] = {
    "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "mixtral": (MixtralConfig, MixtralForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM),
}


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be changed."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit(folder: Path, change: Callable[[Weights], Weights]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def configure(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


def with_(name: str, *shape: int) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, name: torch.ones(shape)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without(_UP), f"lacks {_UP}"),
        (without("lm_head.weight"), "lacks lm_head.weight"),
        (without("model.norm.weight"), "lacks model.norm.weight"),
        (lambda weights: {f"x.{k}": v for k, v in weights.items()}, "lacks .* and 17 more"),
        (with_("model.layers.0.self_attn.q_proj.bias", 64), "no model.layers.0.self_attn.q_proj"),
        (with_("model.layers.7.mlp.up_proj.weight", 3, 3), r"no model.layers.7.mlp.up_proj"),
        (with_("model.layers.0.mlp.up_proj.qweight", 3, 3), r"no model.layers.0.mlp.up_proj.qw"),
        (with_(_UP, 128, 63), rf"{_UP} \(128×63 in the file, 128×64 by config.json\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    folder: Path, change: Callable[[Weights], Weights], told: str
) -> None:
    edit(folder, change)
    with pytest.raises(ModelRefused, match=told):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"num_hidden_layers": 3}, "lacks model.layers.2"),
        ({"num_hidden_layers": 1}, "no model.layers.1"),
        ({"intermediate_size": 96}, r"128×64 in the file, 96×64 by config.json"),
        ({"vocab_size": 500}, r"512×64 in the file, 500×64"),
        ({"attention_bias": True}, "lacks model.layers.0.self_attn.k_proj.bias"),
    ],
)
def test_a_configuration_of_another_model_is_refused(
    folder: Path, values: dict[str, object], told: str
) -> None:
    configure(folder, **values)
    with pytest.raises(ModelRefused, match=told):
        load_model(str(folder))


def test_known_harmless_keys_are_allowed(folder: Path) -> None:
    expected = load_model(str(folder)).fingerprint
    edit(folder, with_("model.layers.0.self_attn.rotary_emb.inv_freq", 8))
    assert load_model(str(folder)).fingerprint == expected


def test_a_tied_head_need_not_be_in_the_file(folder: Path) -> None:
    configure(folder, tie_word_embeddings=True)
    edit(folder, without("lm_head.weight"))
    served = load_model(str(folder))
    assert served.model.lm_head.weight is served.model.model.embed_tokens.weight


def _save_family(kind: str, folder: Path, tiny_model: Path, *, tied: bool) -> PreTrainedModel:
    config, model = _FAMILIES[kind]
    torch.manual_seed(3)
    extra = _EXPERTS if kind in ("mixtral", "qwen3_moe") else {}
    made: PreTrainedModel = model(config(**_SIZES, **extra, tie_word_embeddings=tied))
    made.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / file, folder)
    return made


def test_every_served_family_is_here() -> None:
    assert set(_FAMILIES) == SERVED_MODEL_TYPES


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", sorted(_FAMILIES))
def test_every_family_is_served_with_the_weights_of_its_file(
    kind: str, tied: bool, tiny_model: Path, tmp_path: Path
) -> None:
    made = _save_family(kind, tmp_path, tiny_model, tied=tied)
    served = load_model(str(tmp_path)).model.state_dict()
    for name, weight in made.state_dict().items():
        assert torch.equal(served[name], weight), name


@pytest.mark.parametrize("kind", sorted(_FAMILIES))
def test_every_family_is_refused_without_any_one_of_its_weights(
    kind: str, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _save_family(kind, tmp_path, tiny_model, tied=False)
    whole = load_file(tmp_path / "model.safetensors")
    # one of each kind of the last layer, and those beside the layers
    names = [name for name in whole if ".0." not in name or "experts" in name]
    for name in names:
        save_file(without(name)(whole), tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelRefused, match=r"config\.json describes"):
            load_model(str(tmp_path))
    assert "LOAD REPORT" not in caplog.text


def test_a_gguf_file_without_one_of_its_weights_is_refused(tmp_path: Path) -> None:
    file, words = tmp_path / "tiny.gguf", ["<unk>", "<s>", "</s>", "a"]
    writer = gguf.GGUFWriter(file, "llama")
    for name, value in (
        ("context_length", 128),
        ("embedding_length", 32),
        ("block_count", 1),
        ("feed_forward_length", 48),
        ("head_count", 4),
        ("head_count_kv", 2),
        ("rope_dimension_count", 8),
        ("layer_norm_rms_eps", 1e-5),
        ("vocab_size", len(words)),
    ):
        getattr(writer, f"add_{name}")(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_merges(["a a"])
    shapes = {"token_embd": (len(words), 32), "output_norm": (32,), "blk.0.attn_norm": (32,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", numpy.ones(shape, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelRefused, match=r"lacks model.layers.0.input|lacks .*layers.0"):
        load_model(str(file), cache_dir=tmp_path / "converted")
    assert not list((tmp_path / "converted").glob("gguf-*[0-9a-f]"))


def test_transformers_itself_would_draw_them_at_random(folder: Path) -> None:
    edit(folder, without(_UP))
    first, second = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()[_UP] for _ in range(2)
    )
    assert not torch.equal(first, second)
