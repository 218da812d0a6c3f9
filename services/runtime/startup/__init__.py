"""Checks of what a process needs before it starts, for the services and for `doctor`."""
