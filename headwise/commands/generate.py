"""`headwise generate`: one request to a running decode service."""

from __future__ import annotations

import click

from headwise.client import Generation
from headwise.commands.connection_options import ConnectionFlags, connection_options
from headwise.commands.durations import Seconds
from headwise.commands.former_flags import former_flag
from headwise.commands.output_options import OutputFlags, output_options
from headwise.commands.request_options import (
    UINT32,
    PolicyFlags,
    SamplingFlags,
    policy_options,
    sampling_options,
)
from headwise.commands.summary import as_json, print_heads, print_summary
from headwise.commands.terminal_text import for_output
from headwise.commands.texts import STANDARD_INPUT, read_text, require_text
from headwise.requests import Message


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
    type=Seconds(),
    default=0.0,
    show_default=True,
    help="TTL in seconds of the session that is kept of the answer; 0 keeps none.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=Seconds(positive=True),
    help="Most seconds for the whole call; no limit by default.",
)
@output_options
@former_flag("keep", "session_ttl_seconds", "--session-ttl")
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
    output: OutputFlags,
    connection: ConnectionFlags,
) -> None:
    """Generate an answer to PROMPT; a PROMPT of - is read from standard input."""
    from_input = prompt == STANDARD_INPUT
    text = read_text(prompt) if from_input else require_text("PROMPT", prompt)
    with connection.client() as client:
        generation = client.generate(
            [Message("user", text)] if chat else text,
            policy=policy.value(),
            codec=policy.codec,
            sampling=sampling.value(),
            max_tokens=max_tokens,
            stop=[require_text("--stop", each) for each in stop],
            report_heads=output.heads,
            session_id=require_text("--session", session_id),
            cache_handle=require_text("--cache", cache_handle),
            session_ttl_seconds=session_ttl_seconds,
            timeout_seconds=timeout_seconds,
        )
        if not output.as_json:
            _print_text(generation, sampling.answers)
        results = generation.results
    if output.as_json:
        for result in results:
            click.echo(as_json(result))
    elif not output.quiet:
        _print_figures(generation, output.heads, connection.target)


def _print_figures(generation: Generation, heads: bool, target: str) -> None:
    for result in generation.results[1:]:
        if result.session_id:
            click.echo(f"continue with --session {result.session_id}", err=True)
    print_summary(generation.result, target)
    if heads:
        print_heads(generation.result)


def _print_text(generation: Generation, answers: int) -> None:
    """Print one answer while it arrives, and several answers after the last has ended."""
    if answers == 1:
        for delta in generation:
            click.echo(for_output(delta.text), nl=False)
        click.echo()
        return
    for number, result in enumerate(generation.results, 1):
        click.echo(for_output(f"[{number}] {result.text}"))
