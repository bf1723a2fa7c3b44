"""Where images for training and evaluation come from, and how they are read."""
