"""One file a network: its module, inputs and targets, loss and metrics, and how it is run."""
