"""`headwise generate`: ask a running decode service."""

from __future__ import annotations

import sys

import click
from rich.console import Console

from headwise import Message, Policy, Sampling
from headwise.client import Generation
from services.commands.connection_options import ConnectionFlags, connection_options
from services.commands.parameters import parse_parameters
from services.pictures.heads import HeadCell, head_map
from services.pictures.result import result_table

# the contract's own bounds; the service knows closer ones
_UINT32 = click.IntRange(0, 2**32 - 1)


@click.command()
@click.argument("prompt")
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option("--policy", default="", help="Policy; empty for the server's default.")
@click.option("--parameter", "-p", multiple=True, help="Policy parameter, name=value; repeatable.")
@click.option("--codec", default="", help="How kept rows are stored: int8, or int8/int4.")
@click.option(
    "--max-tokens", type=_UINT32, default=0, help="Tokens at most; 0 for the server's default."
)
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option(
    "--top-k", type=_UINT32, default=0, help="Only so many of the likeliest tokens; 0 for all."
)
@click.option("--top-p", default=0.0, help="Only tokens of this much probability; 0 for all.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Makes sampling repeatable.")
@click.option("--stop", multiple=True, help="Text that ends the answer; repeatable.")
@click.option("--answers", "-n", default=1, help="Answers to this one prompt.")
@click.option("--session", "session_id", default="", help="Go on from this session.")
@click.option("--cache", "cache_handle", default="", help="The prompt follows this stored cache.")
@click.option("--keep", "keep_seconds", default=0.0, help="Keep a session for so many seconds.")
@click.option("--timeout", "timeout_seconds", type=float, help="Seconds for the whole call.")
@click.option("--heads", is_flag=True, help="Show what every head keeps.")
@connection_options
def generate(
    prompt: str,
    chat: bool,
    policy: str,
    parameter: tuple[str, ...],
    codec: str,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    stop: tuple[str, ...],
    answers: int,
    session_id: str,
    cache_handle: str,
    keep_seconds: float,
    timeout_seconds: float | None,
    heads: bool,
    connection: ConnectionFlags,
) -> None:
    """Continue PROMPT; a PROMPT of - is read from standard input."""
    text = sys.stdin.read() if prompt == "-" else prompt
    console = Console(stderr=True)
    with connection.client() as client:
        generation = client.generate(
            [Message("user", text)] if chat else text,
            policy=Policy(policy, parse_parameters(parameter)),
            codec=codec,
            sampling=Sampling(temperature, top_k, top_p, seed, n=answers),
            max_tokens=max_tokens,
            stop=stop,
            report_heads=heads,
            session_id=session_id,
            cache_handle=cache_handle,
            keep_session_seconds=keep_seconds,
            timeout_seconds=timeout_seconds,
        )
        _print_text(generation, answers)
        result = generation.result
    for one in generation.results:
        if one.session_id:
            console.print(f"go on with --session {one.session_id}", highlight=False)
    console.print(
        result_table({result.policy or "no cache": result}, f"answered by {connection.target}")
    )
    if heads:
        cells = [HeadCell(h.layer, h.head, h.head_class, h.rows) for h in result.heads]
        console.print(head_map(cells, result.usage.prompt_tokens - 1))


def _print_text(generation: Generation, answers: int) -> None:
    """One answer as it comes; several one after another, when all have ended."""
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
