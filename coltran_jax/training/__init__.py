"""Training: configuration, state, step, checkpoints, loop (SPEC section 7)."""
