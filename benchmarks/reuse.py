"""Compare the time to first token with a stored document to that with a new prefill."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator

from rich.table import Table

from benchmarks.figures import Figure, add_options, report
from headwise import Client
from services.demo.processes import running_service
from services.prefill.calibration.texts import all_topics
from services.runtime.model.served_model import load_model
from tests.kvstore.tiers.servers import running_valkey

_QUESTION = "\n\nWhat does this say?"
_TARGETS = {"memory": 10.0, "disk": 5.0, "valkey": 5.0}


@contextlib.contextmanager
def store_arguments(tier: str, folder: pathlib.Path) -> Iterator[list[str]]:
    """Yield the arguments with which prefill keeps caches in `tier` alone."""
    if tier == "memory":
        yield []
        return
    alone = ["--store-memory-bytes", "0"]
    if tier == "disk":
        yield [*alone, "--store-disk", str(folder)]
        return
    with running_valkey(folder) as server:
        yield [*alone, "--store-redis", server.address.url]


def first_token_seconds(client: Client, prompt: list[int], **options: str) -> float:
    began = time.perf_counter()
    generation = client.generate(prompt, max_tokens=1, ignore_eos=True, **options)
    next(iter(generation))
    return time.perf_counter() - began


def reuse(
    tier: str, document: list[int], question: list[int], options: argparse.Namespace
) -> tuple[float, float]:
    """Seconds to the first token: prefilling it, and fetching it; the medians of the rounds.

    Decode remembers no context, so that every question fetches it anew.
    """
    common = ["--model", options.model, "--threads", str(options.threads)]
    with (
        tempfile.TemporaryDirectory() as folder,
        store_arguments(tier, pathlib.Path(folder)) as store,
        running_service("prefill", [*common, *store]) as prefill,
        running_service(
            "decode", [*common, "--prefill", prefill.target, "--max-resident-caches", "0"]
        ) as decode,
        Client(decode.target) as client,
    ):
        first_token_seconds(client, document[:64])
        # nothing is kept yet, so each of these is prefilled
        prefilled = [
            first_token_seconds(client, document + question) for _ in range(options.prefills)
        ]
        stored = client.caches.keep(document, ttl_seconds=3600)
        fetched = [
            first_token_seconds(client, question, cache_handle=stored.handle)
            for _ in range(options.rounds)
        ]
    return statistics.median(prefilled), statistics.median(fetched)


def measure(options: argparse.Namespace) -> tuple[dict[str, Figure], Table]:
    """Every tier in turn."""
    served = load_model(options.model)
    document = all_topics(served)[20_000 : 20_000 + options.tokens]
    question = served.tokenizer.encode(_QUESTION, begins=False)
    table = Table("tier", "prefilled s", "stored s", title=f"First token, {options.tokens} tokens")
    figures = {}
    for tier in options.tiers:
        prefilled, fetched = reuse(tier, document, question, options)
        table.add_row(tier, f"{prefilled:.3f}", f"{fetched:.3f}")
        figures[f"reuse_ratio_{tier}"] = Figure(
            prefilled / fetched, "ratio", "prefilling the document", _TARGETS[tier]
        )
    return figures, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--prefills", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiers", nargs="*", choices=tuple(_TARGETS), default=list(_TARGETS))
    add_options(parser)
    options = parser.parse_args()
    figures, table = measure(options)
    report(options, figures, [table], {"threads": options.threads, "tokens": options.tokens})


if __name__ == "__main__":
    main()
