"""The human test: its page, and the scores of its answers."""
