"""Tables and maps of a cache for the terminal."""
