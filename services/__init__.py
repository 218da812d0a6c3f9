"""The processes: prefill, decode, what both share, and the command line."""
