"""The forward pass over a prompt, with profiling and compaction layer by layer."""
