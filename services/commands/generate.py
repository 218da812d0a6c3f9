"""`headwise generate`: one request to a running decode service."""

from __future__ import annotations

import sys

import click
from rich.console import Console

from headwise import Message
from headwise.client import Generation
from services.commands.connection_options import ConnectionFlags, connection_options
from services.commands.former_names import FORMER_SESSION_TTL
from services.commands.former_options import former_options
from services.commands.request_options import (
    UINT32,
    PolicyFlags,
    SamplingFlags,
    policy_options,
    sampling_options,
)
from services.pictures.heads import HeadCell, head_map
from services.pictures.result import result_table


@click.command()
@click.argument("prompt")
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@policy_options("", "Policy; empty for the service's default.")
@click.option(
    "--max-tokens",
    type=UINT32,
    default=0,
    show_default=True,
    help="Longest answer in tokens; 0 for the service's default.",
)
@sampling_options
@click.option("--stop", multiple=True, help="Text that ends the answer; repeatable.")
@click.option("--session", "session_id", default="", help="Session that the prompt continues.")
@click.option("--cache", "cache_handle", default="", help="Stored cache that the prompt follows.")
@click.option(
    "--session-ttl",
    "session_ttl_seconds",
    default=0.0,
    show_default=True,
    help="TTL in seconds of the session that is kept of the answer; 0 keeps none.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=float,
    help="Most seconds for the whole call; no limit by default.",
)
@click.option("--heads", is_flag=True, help="Show how many rows every head keeps.")
@former_options(FORMER_SESSION_TTL)
@connection_options
def generate(
    prompt: str,
    chat: bool,
    policy: PolicyFlags,
    max_tokens: int,
    sampling: SamplingFlags,
    stop: tuple[str, ...],
    session_id: str,
    cache_handle: str,
    session_ttl_seconds: float,
    timeout_seconds: float | None,
    heads: bool,
    connection: ConnectionFlags,
) -> None:
    """Generate an answer to PROMPT; a PROMPT of - is read from standard input."""
    text = sys.stdin.read() if prompt == "-" else prompt
    console = Console(stderr=True)
    with connection.client() as client:
        generation = client.generate(
            [Message("user", text)] if chat else text,
            policy=policy.value(),
            codec=policy.codec,
            sampling=sampling.value(),
            max_tokens=max_tokens,
            stop=stop,
            report_heads=heads,
            session_id=session_id,
            cache_handle=cache_handle,
            session_ttl_seconds=session_ttl_seconds,
            timeout_seconds=timeout_seconds,
        )
        _print_text(generation, sampling.answers)
        result = generation.result
    for answer in generation.results:
        if answer.session_id:
            console.print(f"continue with --session {answer.session_id}", highlight=False)
    console.print(
        result_table({result.policy or "no cache": result}, f"answered by {connection.target}")
    )
    if heads:
        cells = [HeadCell(h.layer, h.head, h.head_class, h.rows) for h in result.heads]
        console.print(head_map(cells, result.usage.prompt_tokens - 1))


def _print_text(generation: Generation, answers: int) -> None:
    """Print one answer while it arrives, and several answers after the last has ended."""
    if answers == 1:
        for delta in generation:
            click.echo(delta.text, nl=False)
        click.echo()
        return
    texts = [""] * answers
    for delta in generation:
        texts[delta.index] += delta.text
    for number, text in enumerate(texts, 1):
        click.echo(f"[{number}] {text}")
