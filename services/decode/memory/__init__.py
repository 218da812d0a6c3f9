"""The memory of the decode process: admission, sessions, resident caches and who gives way."""
