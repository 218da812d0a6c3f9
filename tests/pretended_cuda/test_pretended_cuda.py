"""The pretended device refuses what a real one does, and its graphs replay as real ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.pretended_cuda.recording import CaptureRefused, Launches
from tests.pretended_cuda.tensors import Waits

pytestmark = [
    pytest.mark.parametrize("any_device", ["gpu"], indirect=True),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one"),
]


@pytest.fixture
def there(any_device: str) -> torch.Tensor:
    return torch.arange(4.0, device=any_device)


def here() -> torch.Tensor:
    return torch.ones(4)


def test_results_of_tensors_on_the_device_are_on_the_device(there: torch.Tensor) -> None:
    module = torch.nn.Linear(4, 2).to("cuda")
    made = (there + 1, there[1:], torch.empty_like(there), module(there), module.weight.T)
    assert all(part.is_cuda and part.device.type == "cuda" for part in made)
    assert not there.cpu().is_cuda
    assert there[1:].data_ptr() == there.data_ptr() + there.itemsize
    with torch.device("cuda"):
        assert torch.zeros(3).is_cuda
    assert not torch.zeros(3).is_cuda


def test_copies_share_nothing(there: torch.Tensor) -> None:
    back, again = there.cpu(), here().to(there.device)
    back.fill_(7)
    again.fill_(7)
    assert there.tolist() == [0, 1, 2, 3]
    assert here().tolist() == [1] * 4


@pytest.mark.parametrize(
    "mixes",
    [
        lambda there: there + here(),
        lambda there: torch.cat((there, here())),
        lambda there: there.index_copy_(0, torch.arange(4), here()),
        lambda there: there.__setitem__(torch.arange(2, device="cuda"), here()[:2]),
        lambda there: here()[torch.arange(2, device="cuda")],
        lambda there: torch.nn.Linear(4, 2)(there),
    ],
)
def test_devices_do_not_mix(mixes: Callable[[torch.Tensor], object], there: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        mixes(there)


def test_the_host_cannot_look_into_it(there: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()


@pytest.mark.parametrize(
    "waits",
    [
        lambda there: there[0].item(),
        lambda there: there.tolist(),
        lambda there: bool(there[0]),
        lambda there: there.cpu(),
        lambda there: there[there > 1],
        lambda there: there.nonzero(),
        lambda there: there.copy_(here()),
        lambda there: torch.tensor([1.0], device="cuda"),
        lambda there: torch.cuda.synchronize(),
    ],
)
def test_operations_that_wait_cannot_be_captured(
    waits: Callable[[torch.Tensor], object], there: torch.Tensor
) -> None:
    waits(there)
    with pytest.raises(CaptureRefused), torch.cuda.graph(torch.cuda.CUDAGraph()):
        waits(there)


def test_a_replayed_graph_repeats_its_operations(there: torch.Tensor) -> None:
    graph, factor = torch.cuda.CUDAGraph(), 2
    with torch.cuda.graph(graph):
        doubled = there * factor
        doubled += torch.ones(4, device="cuda")
        there.view(2, 2)[0] = 5
        row = there[1:].neg()
    # nothing has been done yet
    assert there.tolist() == [0, 1, 2, 3]
    # what the host knew is part of the graph
    factor = 3
    graph.replay()
    assert doubled.tolist() == [1, 3, 5, 7]
    assert row.tolist() == [-5, -2, -3]
    there.fill_(1)
    graph.replay()
    assert doubled.tolist() == [3] * 4


def test_operands_that_are_gone_are_missed(any_device: str) -> None:
    graph = torch.cuda.CUDAGraph()
    operand, result = torch.ones(4, device=any_device), torch.zeros(4, device=any_device)
    with torch.cuda.graph(graph):
        result.add_(operand)
    graph.replay()
    del operand
    with pytest.raises(CaptureRefused, match="gone"):
        graph.replay()


def test_pinned_memory_is_copied_without_a_wait(there: torch.Tensor) -> None:
    pinned = torch.empty(4, pin_memory=True)
    before = Waits.count
    pinned.copy_(torch.ones(4))
    there.copy_(pinned, non_blocking=True)
    assert Waits.count == before
    there.copy_(pinned)
    assert Waits.count == before + 1
    assert there.tolist() == [1] * 4


def test_what_comes_back_is_there_once_its_event_is(there: torch.Tensor) -> None:
    pinned = torch.empty(4, pin_memory=True)
    before = Waits.count
    pinned.copy_(there, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    there.fill_(7)
    assert Waits.count == before
    assert pinned.isnan().all()
    event.synchronize()
    assert Waits.count == before + 1
    assert pinned.tolist() == [0, 1, 2, 3]


def test_launches_are_counted(there: torch.Tensor) -> None:
    before = Launches.count
    sums = there.view(2, 2)[0] + 1
    sums.add_(there[:2])
    torch.empty_like(sums)
    assert Launches.count == before + 2
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        there.add_(1).mul_(2)
    assert Launches.count == before + 2
    graph.replay()
    assert Launches.count == before + 3
