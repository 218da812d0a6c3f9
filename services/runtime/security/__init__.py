"""Transport security, tokens, tenants and their limits."""
