"""Python code that lies in a model's folder is never run, and nobody is asked whether to run it."""

from __future__ import annotations

import ast
import builtins
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.runtime.model.model_errors import ModelRefused
from services.runtime.model.served_model import examine_model, load_model, load_tokenizer

_ROOT = Path(__file__).parents[4]
_CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = {kind!r}
class Model(LlamaForCausalLM):
    pass
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
_LOADERS: dict[str, Callable[[str], object]] = {
    "model": load_model,
    "tokenizer": load_tokenizer,
    "config": examine_model,
}


def _folder(tiny_model: Path, folder: Path, kind: str) -> Path:
    """A copy of the tiny model that names its own code for everything that can be loaded."""
    shutil.copytree(tiny_model, folder)
    (folder / "own.py").write_text(_CODE.format(marker=str(folder / "ran"), kind=kind))
    names = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    for file, values in (
        ("config.json", {"model_type": kind, "auto_map": names}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}),
    ):
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def ask(*_: object) -> str:
        raise AssertionError("a question was asked")

    monkeypatch.setattr(builtins, "input", ask)
    return


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize("what", _LOADERS)
@pytest.mark.parametrize("kind", ["llama", "something_new"])
def test_code_of_the_folder_is_not_run(
    kind: str, what: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = _folder(tiny_model, tmp_path / "model", kind)
    if kind == "llama":
        # transformers has a class of its own for this type
        _LOADERS[what](str(folder))
    else:
        with pytest.raises(ModelRefused, match="never run here"):
            _LOADERS[what](str(folder))
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "command", [["prefill"], ["decode", "--prefill", "127.0.0.1:1"], ["doctor"]]
)
def test_a_yes_on_standard_input_changes_nothing(
    command: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    folder = _folder(tiny_model, tmp_path / "model", "something_new")
    ended = subprocess.run(
        [sys.executable, "-m", "services.cli", *command, "--model", str(folder)],
        input="y\n" * 9,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=_ROOT,
    )
    told = " ".join((ended.stdout + ended.stderr).replace("│", " ").split())
    assert ended.returncode
    assert "never run here" in told
    assert "y/N" not in told
    assert not (folder / "ran").exists()


def test_every_loader_says_no() -> None:
    """Each call of transformers' loaders forbids a folder's code, or takes arguments that do."""
    for file in (_ROOT / "services").rglob("*.py"):
        text = file.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
                passed = ast.unparse(node)
                assert any(one in passed for one in ("**_where(", "**source", "**arguments")), file
        if ".from_pretrained(" in text and "**arguments" not in text:
            assert '"trust_remote_code": False' in text, file
