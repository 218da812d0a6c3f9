"""Measure the loss of compression: predictions from compact caches against exact ones.

Text of the standard library is prefilled, compacted by each policy, and its real continuation
fed on top (teacher forcing): KL(full‖compact) in nats, perplexity and how often the first choice
is the same. Then pass keys are hidden in prompts and asked for after compression.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import settings
from benchmarks.fidelity_report import figures, tables
from benchmarks.fidelity_results import Report
from benchmarks.pass_key import found_keys
from services.evaluation.forced_runs import with_later_kept, with_rules
from services.evaluation.passages import COPYING_OFFSET, OFFSETS, hidden_keys, passages
from services.runtime.model.served_model import ServedModel, load_model

# which of the passages is also fed further
_LONG_OFFSET = OFFSETS[2]


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of a prompt, of its continuation, and of the longer one; how many passages."""

    prompt: int
    continuation_tokens: int
    long: int
    passages: int


def measure(served: ServedModel, sizes: Sizes, progress: Progress) -> Report:
    """All parts, one after another, each with a bar of its own."""
    texts = passages(served, sizes.prompt, sizes.continuation_tokens, OFFSETS[: sizes.passages])
    copying = passages(served, sizes.prompt, sizes.continuation_tokens, (COPYING_OFFSET,))
    long = passages(served, sizes.prompt, sizes.long, (_LONG_OFFSET,))
    cases = hidden_keys(served, sizes.prompt)

    def bar(title: str, steps: int) -> Callable[[], None]:
        task = progress.add_task(title, total=steps)
        return lambda: progress.advance(task)

    later_kept = len(settings.LATER_KEPT) * len(texts)
    policies = [setting.policy for setting in settings.PASS_KEY]
    found = found_keys(served, cases, policies, bar("pass keys", len(cases)))
    return Report(
        with_later_kept(served, texts, settings.LATER_KEPT, bar("later kept", later_kept)),
        with_rules(
            served,
            texts,
            settings.RULES_ON,
            bar("rules on", len(texts) * sizes.continuation_tokens),
        ),
        with_rules(served, long, settings.LONG, bar("longer", sizes.long)),
        with_later_kept(served, long, settings.LONG, bar("longer, kept", len(settings.LONG))),
        with_later_kept(served, copying, settings.COPYING, bar("copying", len(settings.COPYING))),
        [
            (setting.name, count, len(cases))
            for setting, count in zip(settings.PASS_KEY, found, strict=True)
        ],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    sizes = Sizes(options.prompt_tokens, options.fed_tokens, options.long_tokens, options.passages)
    served = load_model(options.model)
    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        report = measure(served, sizes, progress)
    Console().print(*tables(report))
    if options.json:
        document = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": options.machine,
            "conditions": {
                "model": options.model,
                "dtype": served.fingerprint.dtype,
                "python": platform.python_version(),
                **dataclasses.asdict(sizes),
            },
            "figures": figures(report),
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompt-tokens", type=int, default=1536)
    parser.add_argument("--fed-tokens", type=int, default=256)
    parser.add_argument("--passages", type=int, default=len(OFFSETS), help="the first so many")
    parser.add_argument("--long-tokens", type=int, default=512)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores", help="its kind")
    return parser


if __name__ == "__main__":
    main()
