"""Every second is charged to one stage, the innermost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from services.prefill.compute.stages import StageClock

pytest.importorskip("triton")

from tests.pretended_cuda.tensors import DeviceTensor


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is one second later whenever it is read."""
    seconds: Iterator[int] = iter(range(1000))
    monkeypatch.setattr(
        "services.prefill.compute.stages.time.perf_counter", lambda: float(next(seconds))
    )


@pytest.mark.usefixtures("ticks")
def test_a_nested_stage_is_not_charged_to_the_outer_one() -> None:
    clock = StageClock()
    with clock.stage("prefill"):
        with clock.stage("profile"):
            pass
        with clock.stage("compact"), clock.stage("ship"):
            pass
    assert clock.seconds("prefill") == 3
    assert clock.seconds("profile") == 1
    assert clock.seconds("compact") == 2
    assert clock.seconds("ship") == 1


@pytest.mark.usefixtures("ticks")
def test_stages_add_up_also_after_an_error() -> None:
    clock = StageClock()
    with pytest.raises(ArithmeticError), clock.stage("prefill"), clock.stage("profile"):
        raise ArithmeticError
    with clock.stage("profile"):
        pass
    assert clock.seconds("profile") == 2
    assert clock.seconds("prefill") == 2
    assert clock.seconds("never") == 0


@pytest.mark.parametrize("any_device", ["gpu"], indirect=True)
def test_a_devices_events_are_waited_for_once_at_the_end(
    any_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The events are a second apart on the stand-in, whatever the clock of the host says."""
    waited: list[object] = []
    own = torch.cuda.Event.synchronize
    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda e: (waited.append(e), own(e)))
    clock = StageClock(torch.device(any_device))
    with clock.stage("prefill"):
        with clock.stage("profile"):
            pass
        with clock.stage("compact"), clock.stage("ship"):
            pass
    assert not waited
    times = [clock.seconds(name) for name in ("prefill", "profile", "compact", "ship", "never")]
    if isinstance(torch.empty(0, device=any_device), DeviceTensor):
        assert times == [3, 1, 2, 1, 0]
    with clock.stage("profile"):
        pass
    assert clock.seconds("profile") > times[1]
    assert len(waited) == 2
