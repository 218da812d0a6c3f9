"""Parts that every process needs: options, logs, metrics, tracing, watched files."""
