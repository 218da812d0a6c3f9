"""`headwise inspect`: the content of a cache in a file."""

from __future__ import annotations

import collections
import pathlib

import click
from rich.console import Console

from headwise.commands.figures import human_bytes
from services.pictures.heads import HeadCell, head_map, legend


@click.command("inspect")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path))
def inspect_cache(file: pathlib.Path) -> None:
    """Show model, policy and size of the cache in FILE, and the rows of every head."""
    from kvstore.errors import KVStoreError
    from kvstore.tiers.file import load_cache

    try:
        cache = load_cache(file)
    except KVStoreError as error:
        raise click.ClickException(f"{file}: {error}") from error
    cells = [
        HeadCell(index, head, rule.head_class, rows)
        for index, layer in enumerate(cache.layers)
        for head, (rule, rows) in enumerate(zip(layer.rules, layer.head_row_counts(), strict=True))
    ]
    model = cache.fingerprint.model
    console = Console()
    console.print(f"model    {model.model_id}  {model.dtype}  weights {model.weights_digest[:12]}")
    console.print(
        f"policy   {cache.fingerprint.policy} {cache.fingerprint.policy_parameters}", soft_wrap=True
    )
    console.print(
        f"cache    {cache.next_position} tokens, {cache.rows_kept_ratio:.1%} of the rows, "
        f"{human_bytes(cache.nbytes)} of {human_bytes(cache.dense_nbytes)}"
    )
    counts = collections.Counter(cell.head_class for cell in cells)
    console.print(legend(counts.most_common()))
    console.print(head_map(cells, cache.next_position))
