"""The order of an image's samples, the best first."""

from collections.abc import Callable

import numpy as np

from coltran_jax.images.arrays import colorfulness, luminance


def ranked(rank: str, coarse: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Orders samples.

    Args:
        rank: one of `coltran_jax.sampling.options.RANKS`.
        coarse: (S, h, w, 3) uint8.
        bits: (S,) float32, log-likelihoods.

    Returns:
        (S,) the samples' numbers, the best first; of equally good ones, the first drawn.
    """
    return np.argsort(-_SCORES[rank](coarse, bits), kind="stable")


def _agreement(coarse: np.ndarray) -> np.ndarray:
    """Minus the mean distance of each sample's chroma to those of the others."""
    chroma = np.stack([one - luminance(one)[..., None] for one in coarse.astype(np.float32)])
    distances = [np.linalg.norm(chroma - one, axis=-1).mean(axis=(1, 2)) for one in chroma]
    return -np.mean(distances, axis=1)


_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "bits": lambda coarse, bits: bits,
    "colorfulness": lambda coarse, bits: np.array([colorfulness(one) for one in coarse]),
    "consensus": lambda coarse, bits: _agreement(coarse),
}
