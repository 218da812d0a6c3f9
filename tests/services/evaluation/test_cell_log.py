"""The log of finished measurements: what was cut off is dropped, what is another's refused."""

import dataclasses

import pytest

from kvstore.cache import ModelFingerprint
from kvstore.errors import InvalidParameter
from services.evaluation.cell_log import CellKey, CellLog

MODEL = ModelFingerprint("a model", "", "digest", "tokenizer", "float32")
KEY = CellKey("forced", "a text", "full {}")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "cells.jsonl"


def test_an_appended_cell_is_read_again(path):
    CellLog(path, MODEL).append(KEY, {"kl": 0.5, "scores": [1.0, 0.0]})
    again = CellLog(path, MODEL)
    assert KEY in again
    assert dataclasses.replace(KEY, part="long") not in again
    assert again[KEY] == {"kl": 0.5, "scores": [1.0, 0.0]}


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_off_is_measured_again(path, cut):
    log = CellLog(path, MODEL)
    other = dataclasses.replace(KEY, case="another text")
    log.append(KEY, {"kl": 0.5})
    log.append(other, {"kl": 0.25})
    path.write_bytes(path.read_bytes()[:-cut])
    again = CellLog(path, MODEL)
    assert (KEY in again, other in again) == (True, False)
    again.append(other, {"kl": 0.75})
    assert CellLog(path, MODEL)[other] == {"kl": 0.75}


def test_another_models_log_is_refused(path):
    CellLog(path, MODEL).append(KEY, {"kl": 0.5})
    before = path.read_bytes()
    with pytest.raises(InvalidParameter, match="another model"):
        CellLog(path, dataclasses.replace(MODEL, dtype="float16"))
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["no json\n", "{}\n", "[1]\n"])
def test_another_file_is_refused_and_left_alone(path, text):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(InvalidParameter):
        CellLog(path, MODEL)
    assert path.read_text() == text
