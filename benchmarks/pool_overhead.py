"""Measure the pool's bytes beyond the rows: metadata, and unused rows of last pages.

Real text of 32 different lengths is prefilled and compacted by the default policy, and all caches
lie in one pool as decode would hold them. Resident bytes are those of the pages in use.
"""

from __future__ import annotations

import argparse
import dataclasses
import threading
from collections.abc import Sequence

import torch
from rich.progress import Progress
from rich.table import Table

from benchmarks.figures import Figure, add_options, report
from kvstore.policies import Policy, parse_policy
from kvstore.pool import PagePool, SequencePages, pages_bound
from services.decode.options import DecodeOptions
from services.prefill.calibration.calibrations import Calibrations
from services.prefill.calibration.texts import all_topics
from services.prefill.compute.prefiller import Prefiller
from services.prefill.options import PrefillOptions, chunk_tokens_for
from services.runtime.model.served_model import ServedModel, default_cache_dir, load_model

_SHORTEST, _LONGEST = 256, 4096
_DEFAULTS = {
    field.name: field.default
    for options in (DecodeOptions, PrefillOptions)
    for field in dataclasses.fields(options)
}


def lengths(sequences: int, longest: int) -> list[int]:
    """Prompt tokens, evenly from the shortest to the longest."""
    return torch.linspace(_SHORTEST, longest, sequences).int().tolist()


def fill(
    served: ServedModel,
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    page_rows: int,
) -> tuple[PagePool, list[SequencePages]]:
    """Prefill every prompt into one pool."""
    bounds = [pages_bound(served.shapes, len(prompt), page_rows) for prompt in prompts]
    pool = PagePool(
        served.shapes,
        pages=sum(bound.rows for bound in bounds),
        page_rows=page_rows,
        dtype=served.dtype,
        sequences=len(prompts),
        sequence_tokens=max(map(len, prompts)),
    )
    calibration = Calibrations(served, default_cache_dir()).needed_by(policy)
    held = []
    with Progress(transient=True) as progress:
        task = progress.add_task("prefilling", total=sum(map(len, prompts)))
        for prompt, bound in zip(prompts, bounds, strict=True):
            pages = pool.open(len(prompt), bound)
            Prefiller(
                served,
                prompt,
                policy,
                chunk_tokens=chunk_tokens_for(0, "cpu"),
                emit=pages.load,
                progress=lambda done: None,
                stop=threading.Event(),
                calibration=calibration,
            ).run()
            held.append(pages)
            progress.advance(task, len(prompt))
    return pool, held


def payload_bytes(pool: PagePool) -> int:
    """Keys and values of the rows held, and nothing else."""
    return pool.rows * pool.storage.unquantized.layout.row_bytes


def table_of(pool: PagePool, held: Sequence[SequencePages]) -> Table:
    """Return a table of the bytes that each part adds to the rows' bytes."""
    payload = payload_bytes(pool)
    parts = {
        "keys and values of the rows held": payload,
        "slack of last pages": pool.slack_rows * payload // pool.rows,
        "marks (positions, scores, flags)": pool.used_metadata_pages
        * pool.storage.metadata_page_bytes,
        "in all": pool.resident_bytes,
        # int32 in tables that are allocated once for all sequences
        "beside it: numbers of the pages": 4 * (pool.used_pages + pool.used_metadata_pages),
        "beside it: dense caches instead": pool.dense_bytes,
    }
    table = Table(
        "part",
        title=f"{len(held)} caches of {held[0].length} to {held[-1].length} tokens, "
        f"pages of {pool.page_rows} rows",
    )
    table.add_column("MB", justify="right")
    table.add_column("of the rows", justify="right")
    for name, size in parts.items():
        table.add_row(name, f"{size / 1e6:.1f}", f"{size / payload:.2%}")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--policy", default=_DEFAULTS["default_policy"])
    parser.add_argument("--page-rows", type=int, default=16)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="8 sequences of at most 1,024 tokens")
    add_options(parser)
    options = parser.parse_args(arguments)
    sequences, longest = (8, 1024) if options.quick else (options.sequences, _LONGEST)
    served = load_model(options.model)
    text = all_topics(served)
    # each from a place of its own, the longest to the text's end
    gap = (len(text) - longest) // sequences
    prompts = [
        text[number * gap : number * gap + tokens]
        for number, tokens in enumerate(lengths(sequences, longest))
    ]
    policy = parse_policy(options.policy, {})
    pool, held = fill(served, policy, prompts, options.page_rows)
    payload = payload_bytes(pool)
    figures = {
        f"resident_ratio_{sequences}": Figure(
            pool.resident_bytes / payload, "ratio", "keys and values of the rows held", 1.08
        ),
        f"kept_ratio_{sequences}": Figure(payload / pool.dense_bytes, "ratio", "dense caches"),
    }
    conditions = {
        "model": options.model,
        "dtype": served.fingerprint.dtype,
        "policy": {"name": policy.name, **policy.parameters()},
        "page_rows": options.page_rows,
        "prompt_tokens": sum(map(len, prompts)),
    }
    report(options, figures, [table_of(pool, held)], conditions)


if __name__ == "__main__":
    main()
