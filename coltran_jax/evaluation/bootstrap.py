"""The bootstrap over images."""

from collections.abc import Iterator, Sequence

import numpy as np

# Resamples whose counts are held at once.
_AT_ONCE = 100


def resampled_counts(num_images: int, resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields how often each image is drawn, as many with replacement as there are: (at most 100, N) float64."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _AT_ONCE):
        rows = min(_AT_ONCE, resamples - start)
        drawn = rng.integers(0, num_images, (rows, num_images)) + num_images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num_images).reshape(rows, num_images).astype(np.float64)


def bootstrap_means(values: Sequence[float], resamples: int, seed: int = 0) -> np.ndarray:
    """Means of values drawn again, with replacement, as many as there are: (N,) -> (resamples,) float64."""
    array = np.asarray(values, np.float64)
    return np.concatenate([counts @ array for counts in resampled_counts(len(array), resamples, seed)]) / len(array)
