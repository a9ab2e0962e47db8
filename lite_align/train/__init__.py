"""Runs, checkpoints, and the training loop."""
