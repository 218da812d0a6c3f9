"""The `headwise` command. Each subcommand imports what it needs only when it runs."""

from __future__ import annotations

import os
import sys

_EXTRA = "headwise: this command needs the serve extra: pip install 'headwise[serve]' ({missing})"


def main() -> None:
    """Entry point of the distribution's console script."""
    # idle OpenMP threads that spin take the cores from the other process: on two busy cores a
    # decode step took 385 ms with them and 87 ms without. torch reads this when it is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from services.commands import command_line
    except ModuleNotFoundError as error:
        # click and rich come with the extra serve
        sys.exit(_EXTRA.format(missing=f"no module named {error.name}"))
    command_line()


if __name__ == "__main__":
    main()
