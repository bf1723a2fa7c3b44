"""The three networks as pure Flax Linen modules (Section 4 of the paper; docs/paper.md)."""
