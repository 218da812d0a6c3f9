"""What a policy costs in quality, bytes and time, measured on a model's own predictions."""
