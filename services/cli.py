"""The `headwise` command with everything that runs and measures services."""

from __future__ import annotations

from headwise.cli import main

if __name__ == "__main__":
    main()
