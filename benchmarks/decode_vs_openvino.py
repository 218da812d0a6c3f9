"""Decode steps of one sequence on full and compact caches, against OpenVINO GenAI.

Both read the same GGUF file. OpenVINO computes as it is installed, on the file's 4-bit weights and
with its own choice of precision and cache; we compute on the same weights in float32. They take
turns of a few tokens, so that drift of the machine falls out of the ratios. OpenVINO lives in an
environment of its own, which is made where there is none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import track
from rich.table import Table

from benchmarks.decode_throughput import KEPT_RATIO, ours
from benchmarks.figures import Figure, add_options, report
from benchmarks.random_caches import coverage_rules, full_rules, open_random
from services.runtime.model.served_model import ServedModel, load_model, smollm2_file
from services.runtime.model.small_batches import prepare_for_small_batches

CONTEXTS = (2048, 4096)
_TURN_TOKENS = 8

Turn = Callable[[], float]


@contextmanager
def openvino_turns(python: Path, threads: int, tokens: int) -> Iterator[Turn]:
    """OpenVINO in a process of its own, its context filled; a turn gives its seconds a token."""
    program = Path(__file__).with_name("openvino_peer.py")
    command = [python, "-W", "ignore", program, smollm2_file(), str(threads), str(tokens)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        questions, answers = process.stdin, process.stdout

        def turn() -> float:
            # the first token of a call is not among those that it times
            print(_TURN_TOKENS + 1, file=questions, flush=True)
            return statistics.mean(json.loads(answers.readline()))

        json.loads(answers.readline())
        yield turn
        questions.close()


def our_turns(served: ServedModel, tokens: int, turns: int, *, compact: bool) -> Turn:
    """The same of ours, on a cache of random rows."""
    rules = (
        coverage_rules(served.shapes, tokens, KEPT_RATIO)
        if compact
        else full_rules(served.shapes, tokens)
    )
    step = ours(served, open_random(served, rules, 1, tokens, turns * _TURN_TOKENS))

    def turn() -> float:
        begin = time.perf_counter()
        for _ in range(_TURN_TOKENS):
            step()
        return (time.perf_counter() - begin) / _TURN_TOKENS

    return turn


def hold(served: ServedModel, python: Path, tokens: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a token by contestant, one entry a round."""
    turns = {
        name: our_turns(served, tokens, rounds + 1, compact=name == "compact")
        for name in ("compact", "full")
    }
    with openvino_turns(python, torch.get_num_threads(), tokens) as turns["openvino"]:
        rows = [
            {name: turn() for name, turn in turns.items()}
            for _ in track(range(rounds + 1), f"{tokens} tokens", transient=True)
        ]
    # the first round warms up
    return {name: [row[name] for row in rows[1:]] for name in turns}


def ratio(seconds: dict[str, list[float]], name: str) -> float:
    """Tokens per second relative to OpenVINO's; the median of the rounds' ratios."""
    pairs = zip(seconds["openvino"], seconds[name], strict=True)
    return statistics.median(peer / ours for peer, ours in pairs)


def environment(folder: Path) -> Path:
    """The Python of an environment with openvino-genai, made in `folder` if there is none."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "openvino-genai"], check=True)
    return python


def _table(seconds: dict[str, list[float]], tokens: int) -> Table:
    table = Table(title=f"1 sequence of {tokens} tokens, {torch.get_num_threads()} threads")
    for column in ("cache", "ms a token", "best", "times OpenVINO"):
        table.add_column(column, justify="left" if column == "cache" else "right")
    for name, entries in seconds.items():
        median, best = statistics.median(entries) * 1e3, min(entries) * 1e3
        table.add_row(name, f"{median:.1f}", f"{best:.1f}", f"{ratio(seconds, name):.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, required=True, help="OpenVINO's own environment")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    python = environment(options.venv)
    served = load_model("smollm2")
    prepare_for_small_batches(served.model)
    figures, tables = {}, []
    for tokens in CONTEXTS:
        seconds = hold(served, python, tokens, options.rounds)
        tables.append(_table(seconds, tokens))
        for name in ("compact", "full"):
            figures[f"ratio_{name}_b1_c{tokens}_openvino"] = Figure(
                ratio(seconds, name), "ratio", "openvino-genai on the same GGUF file"
            )
    conditions = {
        "model": "smollm2",
        "dtype": "float32; OpenVINO its own choice on 4-bit weights",
        "rounds": options.rounds,
        "threads": options.threads,
    }
    report(options, figures, tables, conditions)


if __name__ == "__main__":
    main()
