"""The demo: both services as processes of their own, a real document, the bytes saved."""
