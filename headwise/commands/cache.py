"""`headwise cache`: stored caches, each for many questions about one text."""

from __future__ import annotations

import sys
from typing import TextIO

import click

from headwise import Message, StoredCache
from headwise.commands.connection_options import ConnectionFlags, connection_options
from headwise.commands.durations import Seconds
from headwise.commands.figures import human_bytes
from headwise.commands.former_flags import former_flag
from headwise.commands.request_options import PolicyFlags, policy_options
from headwise.commands.texts import read_text

_handle = click.argument("handle")


@click.group()
def cache() -> None:
    """Store the cache of a document or a system prompt, and release it.

    `headwise generate --cache HANDLE QUESTION` asks about the text without computing it again.
    """


@cache.command()
@click.argument("file")
@click.option(
    "--ttl",
    "ttl_seconds",
    type=Seconds(positive=True),
    default=3600.0,
    show_default=True,
    help="TTL of the stored cache in seconds.",
)
@click.option(
    "--system", is_flag=True, help="Put FILE into the model's chat template, as a system prompt."
)
@policy_options("full", "Policy that chooses the rows to keep.")
@former_flag("for", "ttl_seconds", "--ttl")
@connection_options
def keep(
    file: str,
    ttl_seconds: float,
    system: bool,
    policy: PolicyFlags,
    connection: ConnectionFlags,
) -> None:
    """Store the cache of FILE and print its handle; a FILE of - is standard input."""
    text = read_text(file)
    with connection.client() as client:
        stored = client.caches.keep(
            [Message("system", text)] if system else text,
            ttl_seconds=ttl_seconds,
            policy=policy.value(),
            codec=policy.codec,
        )
    click.echo(stored.handle)
    _describe(stored, sys.stderr)


@cache.command()
@_handle
@connection_options
def show(handle: str, connection: ConnectionFlags) -> None:
    """Show size, policy and remaining TTL of the stored cache HANDLE."""
    with connection.client() as client:
        _describe(client.caches.describe(handle), sys.stdout)


@cache.command()
@_handle
@click.option(
    "--ttl",
    "ttl_seconds",
    type=Seconds(),
    default=0.0,
    show_default=True,
    help="New TTL in seconds, counted from this call; 0 for the TTL at first.",
)
@former_flag("for", "ttl_seconds", "--ttl")
@connection_options
def renew(handle: str, ttl_seconds: float, connection: ConnectionFlags) -> None:
    """Renew the lease of the stored cache HANDLE."""
    with connection.client() as client:
        _describe(client.caches.renew(handle, ttl_seconds), sys.stdout)


@cache.command()
@_handle
@connection_options
def release(handle: str, connection: ConnectionFlags) -> None:
    """End the lease of the stored cache HANDLE."""
    with connection.client() as client:
        client.caches.release(handle)


def _describe(stored: StoredCache, output: TextIO) -> None:
    lease = (
        f"for {stored.expires_in_seconds:.0f} s" if stored.handle else "as long as there is room"
    )
    size = human_bytes(stored.cache_bytes)
    click.echo(f"{stored.tokens} tokens, {size}, policy {stored.policy}, kept {lease}", output)
