"""Ctrl-C drains a service, and a second one ends running calls at once; logs stay whole."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from headwise import Client, HeadwiseError
from services.demo.processes import running_service
from tests.conftest import running_pair

pytestmark = pytest.mark.processes


def test_a_second_interrupt_ends_running_calls(tiny_model: Path) -> None:
    with running_pair(str(tiny_model), decode_arguments=("--drain-seconds", "600")) as pair:
        _, decode = pair
        with Client(decode.target, retries=False) as client:
            answer = client.generate([5, 9, 33], max_tokens=16_000, ignore_eos=True)
            stream = iter(answer)
            next(stream)
            began = time.monotonic()
            decode.process.send_signal(signal.SIGINT)
            # more of the answer after the drain has begun
            while "draining" not in decode.log.read_text():
                next(stream)
            decode.process.send_signal(signal.SIGINT)
            with pytest.raises(HeadwiseError):
                for _ in stream:
                    pass
        assert decode.process.wait(60) == 0
        assert time.monotonic() - began < 300
        assert "Traceback" not in decode.log.read_text()


def test_every_line_of_a_json_log_is_json(tiny_model: Path) -> None:
    arguments = ["--model", str(tiny_model), "--log-format", "json"]
    with running_service("prefill", arguments) as prefill:
        lines = prefill.log.read_text().splitlines()
    assert [json.loads(line)["level"] for line in lines]
