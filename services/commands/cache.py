"""`headwise cache`: keep a context, and ask about it many times."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TextIO

import click

from headwise import Client, HeadwiseError, Message, Policy, StoredCache
from services.commands.parameters import parse_parameters
from services.pictures.figures import human_bytes

_target = click.option("--target", default="127.0.0.1:7080", show_default=True, help="The service.")
_tenant = click.option("--tenant", default="", help="On whose behalf; empty for the default.")
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
@_target
@_tenant
def keep(
    file: TextIO,
    seconds: float,
    system: bool,
    policy: str,
    parameter: tuple[str, ...],
    target: str,
    tenant: str,
) -> None:
    """Prefill FILE (- is standard input) and keep its cache; the handle goes to standard output."""
    text = file.read()
    with _connected(target, tenant) as client:
        stored = client.caches.keep(
            [Message("system", text)] if system else text,
            keep_for_seconds=seconds,
            policy=Policy(policy, parse_parameters(parameter)),
        )
    click.echo(stored.handle)
    _describe(stored, sys.stderr)


@cache.command()
@_handle
@_target
@_tenant
def show(handle: str, target: str, tenant: str) -> None:
    """Say what HANDLE stands for."""
    with _connected(target, tenant) as client:
        _describe(client.caches.describe(handle), sys.stdout)


@cache.command()
@_handle
@click.option("--for", "seconds", default=0.0, help="Seconds from now; 0 for as long as at first.")
@_target
@_tenant
def renew(handle: str, seconds: float, target: str, tenant: str) -> None:
    """Keep HANDLE's cache for longer."""
    with _connected(target, tenant) as client:
        _describe(client.caches.renew(handle, seconds), sys.stdout)


@cache.command()
@_handle
@_target
@_tenant
def release(handle: str, target: str, tenant: str) -> None:
    """Let HANDLE's cache go."""
    with _connected(target, tenant) as client:
        client.caches.release(handle)


@contextlib.contextmanager
def _connected(target: str, tenant: str) -> Iterator[Client]:
    try:
        with Client(target, tenant=tenant) as client:
            yield client
    except HeadwiseError as error:
        raise click.ClickException(str(error)) from error


def _describe(stored: StoredCache, output: TextIO) -> None:
    lease = (
        f"for {stored.expires_in_seconds:.0f} s" if stored.handle else "as long as there is room"
    )
    size = human_bytes(stored.cache_bytes)
    click.echo(f"{stored.tokens} tokens, {size}, policy {stored.policy}, kept {lease}", output)
