"""Five times as many requests as can be served: who is admitted is served as fast as ever.

Both services run as processes of their own on a tiny random model, so that decode is what is
saturated. A closed loop of as many clients as decode takes at once measures the saturated rate;
then five times that rate is offered in an open loop.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, add_options, report
from headwise import AsyncClient, Overloaded
from services.demo.processes import running_service
from tests.tiny_model import VOCABULARY, save_tiny_model

_SEQUENCES, _QUEUED = 16, 16
_PROMPT_TOKENS, _ANSWER_TOKENS = 48, 128
_TIMES = 5
_WARM_UP_SECONDS = 3.0
# the two loads take turns, so that drift of the machine falls out
_ROUNDS = 4


@dataclasses.dataclass(slots=True)
class Seen:
    """Times that clients measured, in seconds; `answer_gaps` has one mean per answer."""

    gaps: list[float] = dataclasses.field(default_factory=list)
    answer_gaps: list[float] = dataclasses.field(default_factory=list)
    first_tokens: list[float] = dataclasses.field(default_factory=list)
    refusals: list[float] = dataclasses.field(default_factory=list)
    refused_with_delay: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.answer_gaps) / self.seconds


class Asker:
    """Sends requests of one size with different prompts."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._chance = random.Random(0)

    async def ask(self, seen: Seen) -> None:
        prompt = [self._chance.randrange(2, VOCABULARY) for _ in range(_PROMPT_TOKENS)]
        began = time.perf_counter()
        generation = self._client.generate(
            prompt, policy="full", max_tokens=_ANSWER_TOKENS, ignore_eos=True
        )
        try:
            times = [time.perf_counter() async for _ in generation]
        except Overloaded as error:
            seen.refusals.append(time.perf_counter() - began)
            seen.refused_with_delay += bool(error.retry_after_seconds)
            return
        gaps = [after - before for before, after in itertools.pairwise(times)]
        seen.gaps += gaps
        seen.answer_gaps.append(statistics.fmean(gaps))
        seen.first_tokens.append(times[0] - began)


async def closed_loop(asker: Asker, seen: Seen, seconds: float) -> None:
    """Run as many clients as decode accepts; each asks again when its answer has ended."""
    began = time.perf_counter()

    async def again() -> None:
        while time.perf_counter() - began < seconds:
            await asker.ask(seen)

    await asyncio.gather(*(again() for _ in range(_SEQUENCES)))
    seen.seconds += time.perf_counter() - began


async def open_loop(asker: Asker, seen: Seen, rate: float, seconds: float) -> None:
    """Send `rate` requests a second, evenly spaced, whatever their outcome."""
    asked = []
    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        asked.append(asyncio.create_task(asker.ask(seen)))
    await asyncio.gather(*asked)
    seen.seconds += time.perf_counter() - began


async def measure(target: str, seconds: float) -> tuple[Seen, Seen]:
    """Measure at saturation and at five times that load, alternately."""
    saturated, offered = Seen(), Seen()
    async with AsyncClient(target, retries=False) as client:
        asker = Asker(client)
        await closed_loop(asker, Seen(), _WARM_UP_SECONDS)
        for _ in range(_ROUNDS):
            await closed_loop(asker, saturated, seconds / _ROUNDS)
            await open_loop(asker, offered, _TIMES * saturated.rate, seconds / _ROUNDS)
    return saturated, offered


def table_of(saturated: Seen, offered: Seen) -> Table:
    table = Table("", title=f"Saturated, and offered {_TIMES} times that")
    columns = ("answers a second", "refused", "ms a token", "p99", "refused within (p99)")
    for column in columns:
        table.add_column(column, justify="right")
    for name, seen in (("saturated", saturated), ("offered more", offered)):
        refused = f"{np.percentile(seen.refusals, 99) * 1e3:.0f} ms" if seen.refusals else ""
        table.add_row(
            name,
            f"{seen.rate:.1f}",
            str(len(seen.refusals)),
            f"{statistics.median(seen.answer_gaps) * 1e3:.1f}",
            f"{np.percentile(seen.gaps, 99) * 1e3:.1f}",
            refused,
        )
    return table


def figures_of(saturated: Seen, offered: Seen) -> dict[str, Figure]:
    ratio = statistics.median(offered.answer_gaps) / statistics.median(saturated.answer_gaps)
    p99_ratio = np.percentile(offered.gaps, 99) / np.percentile(saturated.gaps, 99)
    step = statistics.median(saturated.gaps)
    refusal = float(np.percentile(offered.refusals, 99)) - step
    told = offered.refused_with_delay / len(offered.refusals)
    return {
        "overload_gap_ratio": Figure(ratio, "ratio", "time per token at saturation", 1.3),
        "overload_gap_p99_ratio": Figure(float(p99_ratio), "ratio", "p99 gap at saturation"),
        "refusal_seconds": Figure(refusal, "s", "p99, one step taken off", 0.1),
        "refusals_with_delay": Figure(told, "ratio", "all refusals", 1.0),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of the two loads")
    parser.add_argument("--threads", type=int, default=1, help="of each service")
    add_options(parser)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, Console().status("flooding the services"):
        common = ["--model", str(save_tiny_model(Path(folder)))]
        common += ["--threads", str(options.threads)]
        limits = ["--max-sequences", str(_SEQUENCES), "--max-queued", str(_QUEUED)]
        with (
            running_service("prefill", common) as prefill,
            running_service("decode", [*common, *limits, "--prefill", prefill.target]) as decode,
        ):
            saturated, offered = asyncio.run(measure(decode.target, options.seconds))
    conditions = {
        "model": "tiny random model",
        "threads": options.threads,
        "max_sequences": _SEQUENCES,
        "max_queued": _QUEUED,
        "prompt_tokens": _PROMPT_TOKENS,
        "answer_tokens": _ANSWER_TOKENS,
        "seconds": options.seconds,
        "saturated_rate": saturated.rate,
        "offered_rate": _TIMES * saturated.rate,
    }
    report(options, figures_of(saturated, offered), [table_of(saturated, offered)], conditions)


if __name__ == "__main__":
    main()
