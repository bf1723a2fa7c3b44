"""Bundles, and checkpoints of the published release."""
