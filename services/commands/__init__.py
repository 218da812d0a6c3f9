"""The subcommands of `headwise`, one file each."""

from __future__ import annotations

import os

import click

from headwise.commands import HELP_NAMES
from headwise.commands.cache import cache
from headwise.commands.generate import generate
from headwise.commands.one_line_errors import OneLineErrors
from headwise.version import __version__
from services.commands.calibrate import calibrate
from services.commands.decode import decode
from services.commands.demo import demo
from services.commands.doctor import doctor
from services.commands.eval import evaluate_policies
from services.commands.inspect_cache import inspect_cache
from services.commands.prefill import prefill
from services.commands.top import top
from services.commands.tune import tune
from services.commands.variables import KNOWN_VARIABLES
from services.runtime.process.configuration import refuse_unknown_variables


@click.group(cls=OneLineErrors, context_settings=HELP_NAMES)
@click.version_option(__version__)
def command_line() -> None:
    """Headwise: a KV cache service in which each attention head keeps only the rows it needs.

    `headwise prefill` and `headwise decode` run the two services, and `headwise generate` sends a
    request to them. `headwise demo` does all three on this machine.
    """
    refuse_unknown_variables(os.environ, KNOWN_VARIABLES)


for _command in (
    prefill,
    decode,
    generate,
    cache,
    demo,
    inspect_cache,
    calibrate,
    evaluate_policies,
    tune,
    doctor,
    top,
):
    command_line.add_command(_command)
