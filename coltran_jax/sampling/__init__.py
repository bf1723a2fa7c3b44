"""Sampling of coarse colours: the options, the noise that decides the draws, and the decoders."""
