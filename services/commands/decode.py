"""`headwise decode`: the decode service."""

from __future__ import annotations

import click

from services.commands.print_config import print_config_option, show_config
from services.commands.process import run_process
from services.decode.options import DecodeOptions
from services.runtime.process.configuration import options_of


@click.command()
@print_config_option
@options_of(DecodeOptions)
def decode(*, print_config: bool, **values: object) -> None:
    """Serve decode: pull compact caches from prefill, generate on them."""
    if print_config:
        show_config(DecodeOptions, values)
        return
    from services.decode.process import serve_decode

    run_process(serve_decode, DecodeOptions, values)
