"""`headwise decode`: the decode service."""

from __future__ import annotations

import click

from services.commands.former_names import FORMER_DECODE
from services.commands.former_options import former_options
from services.commands.print_config import print_config_option, show_config
from services.commands.process import run_process
from services.decode.options import DecodeOptions
from services.runtime.process.configuration import options_of
from services.runtime.process.configuration_file import config_option


@click.command()
@config_option(DecodeOptions)
@print_config_option
@former_options(*FORMER_DECODE)
@options_of(DecodeOptions)
def decode(*, print_config: bool, **values: object) -> None:
    """Run the decode service.

    The service fetches the cache of a prompt from prefill and generates tokens from it. Clients
    connect to decode alone.
    """
    if print_config:
        show_config(DecodeOptions, values)
        return
    from services.decode.process import serve_decode

    run_process(serve_decode, DecodeOptions, values)
