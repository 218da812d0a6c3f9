"""Looks at what a service needs before it starts, and at services that run."""
