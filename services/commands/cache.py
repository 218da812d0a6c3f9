"""`headwise cache`: keep a context, and ask about it many times."""

from __future__ import annotations

import sys
from typing import TextIO

import click

from headwise import Message, Policy, StoredCache
from services.commands.connection_options import ConnectionFlags, connection_options
from services.commands.parameters import parse_parameters
from services.pictures.figures import human_bytes

_handle = click.argument("handle")


@click.group()
def cache() -> None:
    """Keep the cache of a document or system prompt, and let it go.

    `headwise generate --cache HANDLE QUESTION` then asks about it without prefilling it again.
    """


@cache.command()
@click.argument("file", type=click.File(encoding="utf-8"))
@click.option(
    "--for", "seconds", default=3600.0, show_default=True, help="Seconds, until it is renewed."
)
@click.option("--system", is_flag=True, help="Put it into the chat template, as system prompt.")
@click.option("--policy", default="full", show_default=True, help="How it is compacted.")
@click.option("--parameter", "-p", multiple=True, help="Policy parameter, name=value; repeatable.")
@click.option("--codec", default="", help="How rows are coded: model, fp8, int8, int4, int8/int4.")
@connection_options
def keep(
    file: TextIO,
    seconds: float,
    system: bool,
    policy: str,
    parameter: tuple[str, ...],
    codec: str,
    connection: ConnectionFlags,
) -> None:
    """Prefill FILE (- is standard input) and keep its cache; the handle goes to standard output."""
    text = file.read()
    with connection.client() as client:
        stored = client.caches.keep(
            [Message("system", text)] if system else text,
            keep_for_seconds=seconds,
            policy=Policy(policy, parse_parameters(parameter)),
            codec=codec,
        )
    click.echo(stored.handle)
    _describe(stored, sys.stderr)


@cache.command()
@_handle
@connection_options
def show(handle: str, connection: ConnectionFlags) -> None:
    """Say what HANDLE stands for."""
    with connection.client() as client:
        _describe(client.caches.describe(handle), sys.stdout)


@cache.command()
@_handle
@click.option("--for", "seconds", default=0.0, help="Seconds from now; 0 for as long as at first.")
@connection_options
def renew(handle: str, seconds: float, connection: ConnectionFlags) -> None:
    """Keep HANDLE's cache for longer."""
    with connection.client() as client:
        _describe(client.caches.renew(handle, seconds), sys.stdout)


@cache.command()
@_handle
@connection_options
def release(handle: str, connection: ConnectionFlags) -> None:
    """Let HANDLE's cache go."""
    with connection.client() as client:
        client.caches.release(handle)


def _describe(stored: StoredCache, output: TextIO) -> None:
    lease = (
        f"for {stored.expires_in_seconds:.0f} s" if stored.handle else "as long as there is room"
    )
    size = human_bytes(stored.cache_bytes)
    click.echo(f"{stored.tokens} tokens, {size}, policy {stored.policy}, kept {lease}", output)
