"""A generation's result as a table."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from headwise import Result
from headwise.commands.summary import rows_of


def result_table(results: Mapping[str, Result], title: str) -> Table:
    """One column per result; bytes are measured, not nominal."""
    table = Table(title=title)
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    columns = [rows_of(result) for result in results.values()]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    return table
