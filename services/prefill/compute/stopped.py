"""How a computation ends whose caller is gone."""

from __future__ import annotations


class PrefillStopped(Exception):
    """The caller went away; raised inside the computation at the next layer."""
