"""A wrong start ends soon in one line that names the option and the remedy, whatever is wrong.

`doctor` finds the same with the same words.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

from services.commands import command_line
from services.doctor.machine_options import MachineOptions
from services.runtime.process.configuration import flag_of, settings_of
from tests.services.startup.wrong_models import WRONG_MODELS
from tests.services.startup.wrong_options import WRONG_OPTIONS
from tests.services.startup.wrong_start import WrongStart

_CASES = (*WRONG_MODELS, *WRONG_OPTIONS)
_DOCTORS_OPTIONS = {flag_of(name) for name, _, _ in settings_of(MachineOptions)}
# doctor reads no weights in other formats, and calls no service that it is not asked about
_AT_THE_START_ALONE = {"weights in a pickle that is none", "a prefill that is another service"}


def _is_seen_by_doctor(case: WrongStart) -> bool:
    """Whether `doctor` has all options of a case."""
    named = {argument for argument in case.arguments if argument.startswith("--")}
    return named <= _DOCTORS_OPTIONS and case.name not in _AT_THE_START_ALONE


_SEEN_BY_DOCTOR = [case for case in _CASES if _is_seen_by_doctor(case) and not case.environment]


@pytest.fixture(scope="module")
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    """The address of a gRPC server that is no Headwise service."""
    server = grpc.server(ThreadPoolExecutor(1))
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield target
    server.stop(0)


@pytest.fixture
def places(tiny_model: Path, tmp_path: Path, taken: int, stranger: str) -> Mapping[str, str]:
    (tmp_path / "file").write_text("no such thing")
    return {
        "model": str(shutil.copytree(tiny_model, tmp_path / "model")),
        "folder": str(tmp_path),
        "file": str(tmp_path / "file"),
        "taken": str(taken),
        "free": str(_free_port()),
        "stranger": stranger,
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _run(case: WrongStart, places: Mapping[str, str], command: str, *arguments: str) -> Result:
    if case.damage:
        case.damage(Path(places["model"]))
    named = [argument.format_map(places) for argument in case.arguments]
    return CliRunner().invoke(
        command_line,
        [command, *arguments, *named],
        env={"HF_HUB_OFFLINE": "1", "COLUMNS": "2000", **case.environment},
    )


def test_there_are_many() -> None:
    assert len(_CASES) >= 60
    assert len({case.name for case in _CASES}) == len(_CASES)
    assert len(_SEEN_BY_DOCTOR) >= 60


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
def test_a_wrong_start_ends_in_one_line(case: WrongStart, places: Mapping[str, str]) -> None:
    has_port = "--port" in case.arguments or "HEADWISE_PORT" in case.environment
    result = _run(case, places, case.command, *(() if has_port else ("--port", "0")))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    line = result.output.rstrip().splitlines()[-1]
    assert line.startswith("Error: "), result.output
    for text in case.says:
        assert text.format_map(places) in line


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", _SEEN_BY_DOCTOR, ids=lambda case: case.name)
def test_doctor_finds_it_with_the_same_words(case: WrongStart, places: Mapping[str, str]) -> None:
    result = _run(case, places, "doctor", "--port", str(_free_port()))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2), result.output
    for text in case.says:
        assert text.format_map(places) in result.output
