"""Where caches rest."""
