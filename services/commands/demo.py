"""`headwise demo`: both services and a request, on one machine."""

from __future__ import annotations

import pathlib

import click
from rich.console import Console

from headwise import HeadwiseError, Policy
from services.runtime.process.options import MODEL_CACHE

_FILE = click.Path(dir_okay=False, path_type=pathlib.Path)


@click.command()
@click.option(
    "--model",
    default="smollm2",
    show_default=True,
    help="Model: a hub id, a local folder, a GGUF file, or smollm2.",
)
@click.option("--policy", default="", help="Policy; empty for the service's default.")
@click.option(
    "--recovery", type=float, help="Attention coverage of the rows to keep: more than 0, at most 1."
)
@click.option(
    "--prompt-file", type=_FILE, help="Text file to use instead of the built-in document."
)
@click.option(
    "--question", default="", help="Question about the document; empty for a built-in one."
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 2**32 - 1),
    default=96,
    show_default=True,
    help="Longest answer in tokens.",
)
@click.option("--json", "json_file", type=_FILE, help="File for the figures, as JSON.")
@click.option(
    "--save", "save_file", type=_FILE, help="File for the compact cache, for headwise inspect."
)
@click.option(
    "--model-cache",
    type=click.Path(path_type=pathlib.Path),
    default=MODEL_CACHE,
    show_default=True,
    envvar="HEADWISE_MODEL_CACHE",
    help="Folder for converted models and calibrations.",
)
def demo(
    model: str,
    policy: str,
    recovery: float | None,
    prompt_file: pathlib.Path | None,
    question: str,
    max_tokens: int,
    json_file: pathlib.Path | None,
    save_file: pathlib.Path | None,
    model_cache: pathlib.Path,
) -> None:
    """Answer a question about a document with prefill and decode, and compare the bytes.

    Both services run as processes of their own until the command ends.
    """
    from services.demo.processes import ServiceFailed
    from services.demo.run import DemoOptions, run_demo
    from services.runtime.model.model_errors import ModelError

    parameters = {} if recovery is None else {"recovery": recovery}
    options = DemoOptions(
        model=model,
        model_cache=model_cache.expanduser(),
        policy=Policy(policy, parameters),
        prompt_file=prompt_file,
        question=question,
        max_tokens=max_tokens,
        json_file=json_file,
        save_file=save_file,
    )
    try:
        run_demo(options, Console())
    except (ServiceFailed, ModelError, HeadwiseError, OSError, UnicodeError) as error:
        raise click.ClickException(str(error)) from error
