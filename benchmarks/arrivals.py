"""Time between tokens of running answers while caches arrive, against the same without arrivals.

Decode is a process of its own on the real model. What arrives was recorded beforehand and comes
from a process that computes nothing, so that what is measured is receiving, not prefill's share
of the cores. Stretches with and without arrivals take turns in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import time
from collections.abc import Sequence

import numpy as np
from rich.progress import track
from rich.table import Table

from benchmarks.figures import Figure, add_options, report
from benchmarks.replayed_prefill import replayed_prefill
from headwise import AsyncClient
from headwise.v1 import prefill_pb2
from services.demo.processes import running_service
from services.prefill.calibration.texts import all_topics
from services.runtime.model.served_model import load_model
from services.runtime.serving.convert import describe_model
from tests.faults.recording import record

_POLICY = "coverage"
_MORE_TOKENS = 4000
_WARM_UP_GAPS = 60
# what runs on from one stretch into the next counts for neither
_SETTLE_SECONDS = 0.5


@dataclasses.dataclass(slots=True)
class Gaps:
    """Seconds between tokens of running answers, as their clients see them, by stretch."""

    stretch: str = "starting"
    seconds: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    warm: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def saw(self, gap: float) -> None:
        seen = self.seconds.setdefault(self.stretch, [])
        seen.append(gap)
        if len(seen) >= _WARM_UP_GAPS:
            self.warm.set()

    def percentile(self, stretch: str, share: float) -> float:
        return float(np.percentile(self.seconds[stretch], share))


async def run_on(client: AsyncClient, prompt: Sequence[int], gaps: Gaps) -> None:
    """A running answer: note the time between its tokens, until cancelled."""
    before = None
    generation = client.generate(prompt, policy=_POLICY, max_tokens=_MORE_TOKENS, ignore_eos=True)
    async for _ in generation:
        now = time.perf_counter()
        if before is not None:
            gaps.saw(now - before)
        before = now


async def arrive(client: AsyncClient, prompt: Sequence[int], pause: float) -> int:
    """Caches arrive, one every `pause` seconds, until cancelled; each stays for one token."""
    arriving: set[asyncio.Task[str]] = set()
    count = 0
    try:
        while True:
            generation = client.generate(prompt, policy=_POLICY, max_tokens=1)
            arriving.add(asyncio.create_task(generation.text()))
            count += 1
            await asyncio.sleep(pause)
    except asyncio.CancelledError:
        await asyncio.gather(*arriving)
        return count


async def measure(
    target: str, prompt: Sequence[int], options: argparse.Namespace
) -> tuple[Gaps, int]:
    """All gaps, and how many caches arrived."""
    gaps, arrived = Gaps(), 0
    async with AsyncClient(target, retries=False) as client:
        running = [
            asyncio.create_task(run_on(client, prompt, gaps)) for _ in range(options.running)
        ]
        await gaps.warm.wait()
        for _ in track(range(options.rounds), "taking turns", transient=True):
            gaps.stretch = "without"
            await asyncio.sleep(options.seconds)
            gaps.stretch = "arriving"
            task = asyncio.create_task(arrive(client, prompt, options.pause))
            await asyncio.sleep(options.seconds)
            task.cancel()
            arrived += await task
            gaps.stretch = "settling"
            await asyncio.sleep(_SETTLE_SECONDS)
        for answer in running:
            answer.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return gaps, arrived


def table_of(gaps: Gaps, arrived: int) -> Table:
    table = Table("", title=f"Time between tokens while {arrived} caches arrive")
    for share in ("median", "p90", "p99", "longest", "gaps"):
        table.add_column(share, justify="right")
    for stretch in ("without", "arriving"):
        found = [f"{gaps.percentile(stretch, share) * 1e3:.0f} ms" for share in (50, 90, 99, 100)]
        table.add_row(stretch, *found, str(len(gaps.seconds[stretch])))
    return table


def figures_of(gaps: Gaps) -> dict[str, Figure]:
    def ratio(share: float) -> float:
        return gaps.percentile("arriving", share) / gaps.percentile("without", share)

    against = "the same run without arrivals"
    return {
        "gap_p99_ratio_arrivals": Figure(ratio(99), "ratio", against, 2.0),
        "gap_p50_ratio_arrivals": Figure(ratio(50), "ratio", against),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=1024, help="prompt tokens of every cache")
    parser.add_argument("--running", type=int, default=4, help="answers that run all the time")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between arrivals")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a stretch")
    parser.add_argument("--rounds", type=int, default=3)
    add_options(parser)
    options = parser.parse_args(arguments)
    served = load_model(options.model)
    prompt = all_topics(served)[: options.tokens]
    stream = record(served, prompt[:-1], _POLICY)
    description = prefill_pb2.PrefillServiceDescribeResponse(model=describe_model(served))
    with (
        replayed_prefill(description.SerializeToString(), stream) as prefill,
        running_service("decode", ["--model", options.model, "--prefill", prefill]) as decode,
    ):
        gaps, arrived = asyncio.run(measure(decode.target, prompt, options))
    told = ("model", "tokens", "running", "pause", "seconds", "rounds")
    conditions = {name: getattr(options, name) for name in told}
    conditions |= {"policy": _POLICY, "cache_bytes": sum(map(len, stream)), "arrived": arrived}
    report(options, figures_of(gaps), [table_of(gaps, arrived)], conditions)


if __name__ == "__main__":
    main()
