"""Calls as CUDA graphs, so that what the host takes to launch is not measured."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch


def captured(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return the call as a graph's replay, or as it is where there are no graphs."""
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # kernels are compiled and libraries settle
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    # what is collected inside a capture may unload a kernel, which ends the capture
    gc.collect()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay(_inputs: object = call) -> None:
        # the graph reads what the call holds, at its addresses
        graph.replay()

    return replay
