"""The figures of an answer, for the terminal and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import click

from headwise.commands.figures import human_bytes, human_seconds, share_of
from headwise.results import HeadReport, Result

# with more heads than this a line no longer fits into 80 columns
_HEADS_A_LINE = 9


def rows_of(result: Result) -> dict[str, str]:
    """The figures by name; bytes are measured, not nominal."""
    memory, timings = result.prompt_memory, result.timings
    between = timings.decode_seconds / max(1, result.usage.completion_tokens - 1)
    return {
        "prompt tokens": f"{result.usage.prompt_tokens}",
        "answer tokens": f"{result.usage.completion_tokens}",
        "rows coded as": result.codec,
        "rows kept": f"{memory.rows_kept_ratio:.1%}",
        "attention mass covered": f"{memory.attention_coverage:.1%}",
        "dense cache": human_bytes(memory.dense_bytes),
        "resident in decode": share_of(memory.resident_bytes, memory.dense_bytes),
        "over the wire": share_of(memory.wire_bytes, memory.dense_bytes),
        "resident at the end": human_bytes(result.final_memory.resident_bytes),
        "time to first token": human_seconds(timings.first_token_seconds),
        "of it prefill": human_seconds(timings.prefill_seconds),
        "of it profiling": human_seconds(timings.profile_seconds),
        "time per token": human_seconds(between),
    }


def print_summary(result: Result, target: str) -> None:
    """Print the figures of one answer to standard error."""
    click.echo(f"\nanswered by {target}, policy {result.policy or 'none: no cache'}", err=True)
    for name, value in rows_of(result).items():
        click.echo(f"  {name:24}{value:>16}", err=True)
    if result.session_id:
        click.echo(f"continue with --session {result.session_id}", err=True)


def print_heads(result: Result) -> None:
    """Print the rows that each head kept to standard error, a line for each layer."""
    click.echo("\nrows kept per layer and KV head", err=True)
    for line in _head_lines(result.heads, result.usage.prompt_tokens - 1):
        click.echo(line, err=True)


def as_json(result: Result) -> str:
    """One line of JSON with the text and all figures."""
    return json.dumps(dataclasses.asdict(result), ensure_ascii=False)


def _head_lines(heads: tuple[HeadReport, ...], tokens: int) -> Iterator[str]:
    layers: dict[int, list[HeadReport]] = {}
    for head in heads:
        layers.setdefault(head.layer, []).append(head)
    for layer, row in sorted(layers.items()):
        cells = [f"{one.rows:>6} {one.rows / tokens if tokens else 1:>4.0%}" for one in row]
        for begin in range(0, len(cells), _HEADS_A_LINE):
            label = f"layer {layer:>3}" if begin == 0 else " " * 9
            yield f"{label}  {'  '.join(cells[begin : begin + _HEADS_A_LINE])}"
