"""The memory of the decode process: its arbiter, the waiting line, sessions and resident caches."""
