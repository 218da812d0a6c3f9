"""Stored caches: leases, tiers and the options of both."""
