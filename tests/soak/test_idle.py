"""A pair that nobody asks for long answers the next request as if nothing had been."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from headwise import Client
from tests.conftest import running_pair

pytestmark = [pytest.mark.soak, pytest.mark.processes]

# longer than any ping, time-out or back-off in the channels
_IDLE_SECONDS = float(os.environ.get("SOAK_SECONDS", "600")) / 4
_PROMPTS = [[(7 * n * n + shift) % 500 for n in range(60)] for shift in range(2)]
# a call that finds its channel lost has to connect anew
_PROMPT_SECONDS = 3.0


def test_a_pair_that_was_left_idle_answers_at_once(tiny_model: Path) -> None:
    with running_pair(str(tiny_model)) as (_, decode), Client(decode.target) as client:
        # the second takes the way through prefill once more: nothing is there to be reused
        first = client.generate(_PROMPTS[0], max_tokens=4, ignore_eos=True).text()
        time.sleep(_IDLE_SECONDS)
        began = time.monotonic()
        client.generate(_PROMPTS[1], max_tokens=4, ignore_eos=True).text()
        assert time.monotonic() - began < _PROMPT_SECONDS
        assert client.generate(_PROMPTS[0], max_tokens=4, ignore_eos=True).text() == first
