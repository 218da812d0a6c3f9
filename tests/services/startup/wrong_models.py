"""Wrong starts because of the model: its folder, weights, configuration, tokenizer, GGUF file."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.services.startup.wrong_start import (
    Damage,
    WrongStart,
    both,
    config,
    content,
    cut,
    without,
)

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 269060552\n"
)


def _retyped(dtype: torch.dtype) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / _WEIGHTS)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(128, 64, dtype=dtype)
        save_file(tensors, folder / _WEIGHTS, {"format": "pt"})

    return damage


def _gguf(content: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "a.gguf").write_bytes(content)

    return damage


def _gguf_head(version: int, tensors: int, pairs: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


def _gguf_text(key: str, value: str) -> bytes:
    """A pair of the head whose value is a string, which is type 8."""
    encoded = [struct.pack("<Q", len(text)) + text.encode() for text in (key, value)]
    return encoded[0] + struct.pack("<I", 8) + encoded[1]


def _of(name: str, damage: Damage, *says: str) -> WrongStart:
    return WrongStart(name, ("--model", "{model}"), ("--model", *says), damage)


def _of_gguf(name: str, file: bytes, *says: str) -> WrongStart:
    arguments = ("--model", "{model}/a.gguf", "--model-cache", "{folder}/cache")
    return WrongStart(name, arguments, ("--model", *says), _gguf(file))


NAMES = (
    WrongStart("no such folder", ("--model", "/no/such/folder"), ("--model", "check the path")),
    WrongStart("no such hub id", ("--model", "nobody/nothing"), ("--model", "hub id")),
    WrongStart("a name that is no hub id", ("--model", "a/b/c"), ("--model", "hub id")),
    WrongStart("an empty name", ("--model", ""), ("--model",)),
    WrongStart("a folder of another kind", ("--model", "{folder}"), ("config.json",)),
    WrongStart("a file that is no model", ("--model", "{model}/config.json"), ("--model",)),
    WrongStart("no such GGUF file", ("--model", "{folder}/a.gguf"), ("check the path",)),
)

WEIGHTS = (
    _of("cut to half", cut(_WEIGHTS, 0.5), _WEIGHTS, "cut short", "download"),
    _of("cut within the head", cut(_WEIGHTS, 0.001), _WEIGHTS, "cut short"),
    _of("one byte short", cut(_WEIGHTS, 0.99999), _WEIGHTS, "cut short"),
    _of("empty", content(_WEIGHTS, b""), _WEIGHTS, "empty"),
    _of("a Git LFS pointer", content(_WEIGHTS, _POINTER), "Git LFS pointer", "git lfs pull"),
    _of("a web page", content(_WEIGHTS, b"<!DOCTYPE html><html>"), _WEIGHTS, "download"),
    _of("a huge head", content(_WEIGHTS, b"\xff" * 64), _WEIGHTS, "download"),
    _of("no weights", without(_WEIGHTS), _INDEX, "download"),
    _of("a missing shard", both(without(_WEIGHTS), content(_INDEX,
        b'{"weight_map": {"lm_head.weight": "model-1-of-2.safetensors"}}')),
        "model-1-of-2.safetensors", "download"),
    _of("an index that is none", both(without(_WEIGHTS), content(_INDEX, b"[]")), "no index"),
    _of("weights in a pickle that is none", both(without(_WEIGHTS),
        content("pytorch_model.bin", b"no pickle")), "weights"),
    _of("codes of 8 bits", _retyped(torch.int8), "quantized", "up_proj", "GGUF"),
    _of("floats of 8 bits", _retyped(torch.float8_e4m3fn), "quantized", "up_proj"),
    *(
        _of(f"quantized by {method}", config(quantization_config={"quant_method": method, **more}),
            "quantized", method)
        for method, more in (
            ("gptq", {"bits": 4, "group_size": 128}),
            ("awq", {"bits": 4}),
            ("bitsandbytes", {"load_in_4bit": True}),
            ("fp8", {}),
            ("compressed-tensors", {}),
            ("mxfp4", {}),
        )
    ),
)  # fmt: skip

CONFIGURATIONS = (
    _of("config.json is no JSON", content("config.json", b"{"), "config.json"),
    _of("config.json is a list", content("config.json", b"[]"), "config.json"),
    _of("config.json is binary", content("config.json", b"\xff\xfe\x00"), "config.json"),
    _of("config.json is empty", content("config.json", b""), "config.json"),
    _of("no model type", config(model_type=None), "--model"),
    _of("an unknown model type", config(model_type="no-such-type"), "no-such-type"),
    _of("a type that is not served", config(model_type="gpt2"), "gpt2", "served types"),
    _of("a hidden size other than the weights'", config(hidden_size=32, head_dim=None),
        "sizes differ"),
    _of("another vocabulary than the weights'", config(vocab_size=600), "embed_tokens", "600"),
    _of("another intermediate size", config(intermediate_size=256), "mlp", "one checkpoint"),
    _of("heads that do not divide", config(num_attention_heads=5, head_dim=None),
        "num_attention_heads"),
    _of("KV heads that do not divide", config(num_key_value_heads=3), "KV heads"),
    _of("no heads", config(num_attention_heads=0), "num_attention_heads"),
    _of("a size in words", config(hidden_size="large"), "hidden_size"),
    _of("no layers", config(num_hidden_layers=0), "num_hidden_layers"),
    _of("no context", config(max_position_embeddings=0), "max_position_embeddings"),
    _of("an odd head", config(head_dim=15), "15"),
    _of("YaRN without a factor", config(rope_parameters={"rope_type": "yarn"}), "factor"),
    _of("YaRN as older files spell it", config(rope_parameters=None,
        rope_scaling={"type": "yarn"}, rope_theta=1e4), "factor"),
    _of("a factor in words", config(rope_parameters={"rope_type": "linear", "factor": "two",
        "rope_theta": 1e4}), "factor"),
    _of("a RoPE type that is not served", config(rope_parameters={"rope_type": "dynamic",
        "factor": 2.0, "rope_theta": 1e4}), "dynamic"),
    _of("an unknown activation", config(hidden_act="swoosh"), "config.json"),
)  # fmt: skip

TOKENIZERS = (
    _of("tokenizer.json of another kind", content("tokenizer.json", b'{"a": 1}'), "tokenizer"),
    _of("tokenizer.json is empty", content("tokenizer.json", b""), "tokenizer"),
    _of("tokenizer.json is a Git LFS pointer", content("tokenizer.json", _POINTER), "tokenizer"),
    _of("tokenizer.json is cut", cut("tokenizer.json", 0.5), "tokenizer"),
    _of("no tokenizer", without("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
    _of("tokenizer_config.json is no JSON", content("tokenizer_config.json", b"{"), "tokenizer"),
)

GGUF_FILES = (
    _of_gguf("a GGUF file of another kind", b"PK\x03\x04", "no GGUF file"),
    _of_gguf("an empty GGUF file", b"", "no GGUF file"),
    _of_gguf("a GGUF file that is a pointer", _POINTER, "Git LFS pointer"),
    _of_gguf("a GGUF file of the magic alone", b"GGUF", "GGUF file", "download"),
    _of_gguf("a GGUF version of the future", _gguf_head(99, 0, 0), "GGUF file", "download"),
    _of_gguf("a GGUF file cut in its head", _gguf_head(3, 1, 9), "GGUF file", "download"),
    _of_gguf("a GGUF file of no end", _gguf_head(3, 2**60, 2**60), "GGUF file", "download"),
    _of_gguf("a GGUF file with a text of no end", _gguf_head(3, 0, 1, b"\xff" * 64), "GGUF file"),
    _of_gguf("a GGUF file without an architecture", _gguf_head(3, 0, 0), "GGUF file"),
    _of_gguf(
        "a GGUF architecture that is not known",
        _gguf_head(3, 0, 1, _gguf_text("general.architecture", "abacus")),
        "abacus",
    ),
)

WRONG_MODELS = (*NAMES, *WEIGHTS, *CONFIGURATIONS, *TOKENIZERS, *GGUF_FILES)
