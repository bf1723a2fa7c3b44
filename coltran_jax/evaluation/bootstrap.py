"""The bootstrap over images."""

from collections.abc import Sequence

import numpy as np


def bootstrap_means(values: Sequence[float], resamples: int, seed: int = 0) -> np.ndarray:
    """Means of values drawn again, with replacement, as many as there are: (N,) -> (resamples,) float64."""
    array = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    return np.array([array[rng.integers(0, len(array), len(array))].mean() for _ in range(resamples)])
