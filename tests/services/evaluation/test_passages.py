"""The fixed texts: no continuation may be a copy of what its prompt holds."""

import sys
import types

import pytest

from services.evaluation.passages import COPYING_OFFSET, OFFSETS, passages
from services.runtime.model.served_model import load_tokenizer

pytestmark = pytest.mark.model


def repeated(passage, length=16):
    """Runs of `length` tokens that end in the continuation and occur in the prompt."""
    text = passage.prompt + passage.continuation + passage.targets[-1:]
    prompt = len(passage.prompt)
    runs = {text[first : first + length] for first in range(prompt - length + 1)}
    later = range(prompt - length + 2, len(text) - length + 1)
    return sum(text[first : first + length] in runs for first in later)


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="the places were looked for in Python 3.11's texts"
)
def test_no_continuation_repeats_its_prompt(smollm2):
    # of the model only the tokenizer is asked
    served = types.SimpleNamespace(tokenizer=load_tokenizer(smollm2))
    assert len(set(OFFSETS)) == 8
    for prompt, continuation in ((1536, 256), (1536, 1000), (3072, 256)):
        found = [repeated(passage) for passage in passages(served, prompt, continuation)]
        assert found == [0] * len(OFFSETS)
    (copying,) = passages(served, 1536, 256, (COPYING_OFFSET,))
    assert repeated(copying) > 100
