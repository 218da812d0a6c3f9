"""The subcommands that call running services; they need nothing but the client."""

from __future__ import annotations

import click

from headwise.commands.cache import cache
from headwise.commands.generate import generate
from headwise.commands.one_line_errors import OneLineErrors
from headwise.version import __version__

HELP_NAMES = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}
# commands of the distribution headwise-server
_HOW = "in a clone of the repository: pip install . ./server"
_SERVING = "calibrate, decode, demo, doctor, eval, inspect, prefill, top, tune"


class _ClientGroup(OneLineErrors):
    """The client's commands; others are named with the distribution that brings them."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in _SERVING.split(", "):
            raise click.ClickException(
                f"headwise {cmd_name} is not installed: it comes with headwise-server; {_HOW}"
            )
        return command


@click.group(
    cls=_ClientGroup,
    context_settings=HELP_NAMES,
    epilog=f"headwise-server adds {_SERVING}; {_HOW}",
)
@click.version_option(__version__)
def client_command_line() -> None:
    """Headwise: a client of running services.

    `headwise generate` sends a request to a decode service, `headwise cache` stores documents.
    """


client_command_line.add_command(generate)
client_command_line.add_command(cache)
