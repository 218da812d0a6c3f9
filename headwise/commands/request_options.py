"""Flags of commands that compute a prompt: the policy, and the sampling of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import click

from headwise import Policy, Sampling
from headwise.commands.grouped_options import Flag, grouped
from headwise.commands.parameters import parse_parameters

# the bounds of the protocol's types; the service has narrower ones
UINT32 = click.IntRange(0, 2**32 - 1)
_UINT64 = click.IntRange(0, 2**64 - 1)


@dataclasses.dataclass(frozen=True, slots=True)
class PolicyFlags:
    """The values of the flags that choose a policy and a codec."""

    policy: str
    parameter: tuple[str, ...]
    codec: str

    def value(self) -> Policy:
        """The policy with its parameters. Raises `click.BadParameter`."""
        return Policy(self.policy, parse_parameters(self.parameter))


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingFlags:
    """The values of the flags that say how tokens are chosen."""

    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    answers: int

    def value(self) -> Sampling:
        """The sampling that a request names."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.seed, n=self.answers)


def policy_options(default: str, description: str) -> Flag:
    """A decorator that adds the flags and gives the command `policy`, a `PolicyFlags`."""
    return grouped(
        "policy",
        PolicyFlags,
        (
            click.option("--policy", default=default, show_default=True, help=description),
            click.option(
                "--parameter",
                "-p",
                multiple=True,
                help="Parameter of the policy, as NAME=VALUE; repeatable.",
            ),
            click.option(
                "--codec",
                default="",
                help="Codec of keys and values: model, fp8, int8, int4, or one for each as "
                "int8/int4. Empty, like model, keeps the model's data type.",
            ),
        ),
    )


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that adds the flags and gives the command `sampling`, a `SamplingFlags`."""
    return grouped("sampling", SamplingFlags, _SAMPLING)(command)


_SAMPLING: tuple[Flag, ...] = (
    click.option(
        "--temperature",
        default=0.0,
        show_default=True,
        help="Temperature of sampling; 0 always takes the most likely token.",
    ),
    click.option(
        "--top-k",
        type=UINT32,
        default=0,
        show_default=True,
        help="Number of the most likely tokens to sample from; 0 for all.",
    ),
    click.option(
        "--top-p",
        default=0.0,
        show_default=True,
        help="Probability, from 0 to 1, that the tokens to sample from reach together; 0 for all.",
    ),
    click.option("--seed", type=_UINT64, help="Seed that makes sampling repeatable."),
    click.option(
        "--answers",
        "-n",
        type=click.IntRange(1, 2**32 - 1),
        default=1,
        show_default=True,
        help="Number of answers to the prompt.",
    ),
)
