"""What running services hold and do, read from their metrics and their own lists of sessions."""
