"""`headwise decode`: the decode service."""

from __future__ import annotations

import click

from services.commands.process import run_process
from services.decode.options import DecodeOptions
from services.runtime.configuration import options_of


@click.command()
@options_of(DecodeOptions)
def decode(**values: object) -> None:
    """Serve decode: pull compact caches from prefill, generate on them."""
    from services.decode.process import serve_decode

    run_process(serve_decode, DecodeOptions, values)
