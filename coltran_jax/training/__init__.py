"""Training: configuration, state, step, checkpoints, loop."""
