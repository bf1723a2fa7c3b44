"""Chroma that spreads from known pixels over the grayscale image around them."""

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from coltran_jax.images import arrays

# Standard deviation of the difference in gray, 0 to 255, across which chroma passes from a pixel to the next.
_GRAY_SCALE = 8.0
# What passes across any edge, and what each pixel loses: chroma grows uncertain about 20 pixels into like gray.
_LEAK = 1e-4
_LOSS = 3e-3


def chroma_of(coarse: np.ndarray) -> np.ndarray:
    """Returns coarse colours less their own gray: (...) in 0..511 -> (..., 3) float32."""
    colors = arrays.rgb_from_coarse(coarse).astype(np.float32)
    return colors - arrays.luminance(colors)[..., None]


def spread_chroma(known: np.ndarray, gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spreads the chroma of known pixels to those of like gray around them.

    Chroma passes between neighbours by how alike their gray is (Levin, Lischinski and Weiss, "Colorization using
    Optimization", 2004), and a part of it is lost in each pixel: of the weights with which a pixel is a mean of known
    ones, what is left is the confidence.

    Args:
        known: (h, w) integers, coarse colours 0..511 of known pixels, one at least, and -1 elsewhere.
        gray: (h, w, 1) uint8.

    Returns:
        Chroma (h, w, 3) float32, as of `chroma_of`, and confidence (h, w) float32 from 0 to 1, 1 where known.
    """
    shape = known.shape
    weights = _neighbours(gray.reshape(shape).astype(np.float64))
    laplacian = scipy.sparse.diags_array(weights.sum(axis=1) + _LOSS) - weights
    is_known = known.ravel() >= 0
    values = np.ones((known.size, 4))
    values[is_known, :3] = chroma_of(known.ravel()[is_known])
    if not is_known.all():
        rows = laplacian.tocsr()[~is_known]
        given = -rows[:, is_known] @ values[is_known]
        values[~is_known] = scipy.sparse.linalg.splu(rows[:, ~is_known].tocsc()).solve(given)
    confidence = values[:, 3:]
    chroma = values[:, :3] / np.maximum(confidence, np.finfo(np.float32).tiny)
    return chroma.reshape(*shape, 3).astype(np.float32), confidence.reshape(shape).astype(np.float32)


def _neighbours(gray: np.ndarray) -> scipy.sparse.csr_array:
    """Returns how much chroma passes between pixels, (h w, h w), of (h, w)."""
    numbers = np.arange(gray.size).reshape(gray.shape)
    along = [(slice(None), slice(None, -1)), (slice(None), slice(1, None))]
    pairs = [along, [index[::-1] for index in along]]
    ends = [np.concatenate([numbers[pair[end]].ravel() for pair in pairs]) for end in (0, 1)]
    steps = gray.ravel()[ends[0]] - gray.ravel()[ends[1]]
    passing = np.exp(-(steps**2) / (2 * _GRAY_SCALE**2)) + _LEAK
    one_way = scipy.sparse.coo_array((passing, tuple(ends)), (gray.size, gray.size)).tocsr()
    return one_way + one_way.T
