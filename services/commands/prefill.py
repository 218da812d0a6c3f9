"""`headwise prefill`: the prefill service."""

from __future__ import annotations

import click

from services.commands.former_names import FORMER_PREFILL
from services.commands.former_options import former_options
from services.commands.print_config import print_config_option, show_config
from services.commands.process import run_process
from services.prefill.options import PrefillOptions
from services.runtime.process.configuration import options_of
from services.runtime.process.configuration_file import config_option


@click.command()
@config_option(PrefillOptions)
@print_config_option
@former_options(*FORMER_PREFILL)
@options_of(PrefillOptions)
def prefill(*, print_config: bool, **values: object) -> None:
    """Run the prefill service.

    The service computes the cache of a prompt, profiles every attention head, drops the rows that
    the request's policy does not keep, and streams the rest to decode.
    """
    if print_config:
        show_config(PrefillOptions, values)
        return
    from services.prefill.process import serve_prefill

    run_process(serve_prefill, PrefillOptions, values)
