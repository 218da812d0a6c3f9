"""What any process needs: options, logs, metrics, tracing, watched files."""
