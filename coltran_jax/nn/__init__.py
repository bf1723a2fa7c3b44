"""The three networks as pure Flax Linen modules (SPEC sections 3 to 5)."""
