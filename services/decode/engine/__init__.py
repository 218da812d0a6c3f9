"""The engine: schedule, one forward pass for the batch, sampling, and running sequences."""
