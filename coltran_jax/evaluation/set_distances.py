"""Distances between two sets of images by their features, beside the Fréchet distance.

Each takes two `Statistics`, of the images made and of the real ones, and compares the features that they keep.
"""

from collections.abc import Callable, Iterator

import numpy as np

from coltran_jax.evaluation.frechet import Statistics

# Of the Gaussian kernel, and what the distance is multiplied by (Jayasumana et al., 2024).
_SIGMA = 10
_SCALE = 1000
_NEIGHBOURS = 3
# Rows of a matrix of distances that are computed at once.
_ROWS = 1024


def kernel_distance(made: Statistics, real: Statistics) -> float:
    """The kernel inception distance times 1,000, KID where the features are Inception's (Binkowski et al., 2018).

    The unbiased estimate of the squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, of all images at
    once; others average it over subsets, which estimates the same with more noise. Around 0, and so sometimes below
    it, for two sets of one distribution.
    """
    left, right = (np.asarray(own.features, np.float64) for own in (made, real))

    def kernel(products: np.ndarray) -> np.ndarray:
        values = products / left.shape[1] + 1
        return values * values * values

    def within(x: np.ndarray) -> float:
        own = kernel(np.square(x).sum(axis=1)).sum()
        return (_total(kernel, x, x) - own) / (len(x) * (len(x) - 1))

    between = _total(kernel, left, right) / (len(left) * len(right))
    return 1000 * (within(left) + within(right) - 2 * between)


def _total(kernel: Callable[[np.ndarray], np.ndarray], left: np.ndarray, right: np.ndarray) -> float:
    """The sum of a kernel of the products of each with each."""
    return sum(float(kernel(left[i : i + _ROWS] @ right.T).sum()) for i in range(0, len(left), _ROWS))


def gaussian_distance(made: Statistics, real: Statistics) -> float:
    """The squared maximum mean discrepancy with a Gaussian kernel, times 1,000 (Jayasumana et al., 2024).

    CMMD where the features are CLIP's. As there, the features are scaled to length 1, the kernel's sigma is 10, and
    the estimate is the biased one, which is never below 0.
    """
    left, right = (_normalized(own.features) for own in (made, real))

    def kernel(products: np.ndarray) -> np.ndarray:
        # Of vectors of length 1, the squared distance is 2 - 2 x.y.
        return np.exp((products - 1) / _SIGMA**2)

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        return _total(kernel, x, y) / (len(x) * len(y))

    return _SCALE * (mean(left, left) + mean(right, right) - 2 * mean(left, right))


def _normalized(features: np.ndarray) -> np.ndarray:
    array = np.asarray(features, np.float64)
    return array / np.linalg.norm(array, axis=1, keepdims=True).clip(1e-12)


def precision(made: Statistics, real: Statistics) -> float:
    """The share of images made that lie among real ones: within reach of one's third neighbour, in 0..1.

    Kynkäänniemi et al., 2019, with k of 3.
    """
    return _share_within(made.features, real.features)


def recall(made: Statistics, real: Statistics) -> float:
    """The share of real images that lie among those made, in 0..1; low where samples lack variety. See `precision`."""
    return _share_within(real.features, made.features)


def _share_within(points: np.ndarray, others: np.ndarray) -> float:
    """The share of points that are no further from one of the others than that one's third neighbour among them."""
    nearest = min(_NEIGHBOURS, len(others) - 1)
    radii = np.concatenate([np.partition(rows, nearest, axis=1)[:, nearest] for rows in _distances(others, others)])
    inside = [(rows <= radii).any(axis=1) for rows in _distances(points, others)]
    return float(np.concatenate(inside).mean())


def _distances(points: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    """Yields (rows, M) squared distances; a point among the others is at 0 from itself, but for rounding."""
    points, others = (np.asarray(x, np.float64) for x in (points, others))
    lengths = np.square(others).sum(axis=1)
    for start in range(0, len(points), _ROWS):
        rows = points[start : start + _ROWS]
        yield np.square(rows).sum(axis=1)[:, None] + lengths - 2 * rows @ others.T
