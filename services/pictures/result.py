"""A generation's result as a table."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from headwise import Result
from services.pictures.figures import human_bytes, human_seconds


def result_table(results: Mapping[str, Result], title: str) -> Table:
    """One column per result; bytes are measured, not nominal."""
    table = Table(title=title)
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    for label, cells in _rows(tuple(results.values())).items():
        table.add_row(label, *cells)
    return table


def _rows(results: tuple[Result, ...]) -> dict[str, list[str]]:
    memories = [r.prompt_memory for r in results]
    return {
        "prompt tokens": [f"{r.usage.prompt_tokens}" for r in results],
        "answer tokens": [f"{r.usage.completion_tokens}" for r in results],
        "rows coded as": [r.codec for r in results],
        "rows kept": [f"{m.rows_kept_ratio:.1%}" for m in memories],
        "attention mass covered": [f"{m.attention_coverage:.1%}" for m in memories],
        "dense cache": [human_bytes(m.dense_bytes) for m in memories],
        "resident in decode": [_share(m.resident_bytes, m.dense_bytes) for m in memories],
        "over the wire": [_share(m.wire_bytes, m.dense_bytes) for m in memories],
        "resident at the end": [human_bytes(r.final_memory.resident_bytes) for r in results],
        "time to first token": [human_seconds(r.timings.first_token_seconds) for r in results],
        "of it prefill": [human_seconds(r.timings.prefill_seconds) for r in results],
        "of it profiling": [human_seconds(r.timings.profile_seconds) for r in results],
        "time per token": [human_seconds(_per_token(r)) for r in results],
    }


def _share(part: int, whole: int) -> str:
    return f"{human_bytes(part)} ({part / whole:.0%})" if whole else human_bytes(part)


def _per_token(result: Result) -> float:
    return result.timings.decode_seconds / max(1, result.usage.completion_tokens - 1)
