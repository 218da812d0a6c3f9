"""`python -m deploy.observe`: both services under load, watched by a real Prometheus."""
