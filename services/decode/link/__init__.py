"""The connection to prefill: requests for caches, and the frames that arrive."""
