"""`headwise prefill`: the prefill service."""

from __future__ import annotations

import click

from services.commands.process import run_process
from services.prefill.options import PrefillOptions
from services.runtime.configuration import options_of


@click.command()
@options_of(PrefillOptions)
def prefill(**values: object) -> None:
    """Serve prefill: run prompts, profile every head, stream compact caches."""
    from services.prefill.process import serve_prefill

    run_process(serve_prefill, PrefillOptions, values)
