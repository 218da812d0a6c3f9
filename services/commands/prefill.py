"""`headwise prefill`: the prefill service."""

from __future__ import annotations

import click

from services.commands.print_config import print_config_option, show_config
from services.commands.process import run_process
from services.prefill.options import PrefillOptions
from services.runtime.process.configuration import options_of


@click.command()
@print_config_option
@options_of(PrefillOptions)
def prefill(*, print_config: bool, **values: object) -> None:
    """Serve prefill: run prompts, profile every head, stream compact caches."""
    if print_config:
        show_config(PrefillOptions, values)
        return
    from services.prefill.process import serve_prefill

    run_process(serve_prefill, PrefillOptions, values)
