"""The first fifteen minutes on a GPU: every part in a process of its own, with a limit."""
