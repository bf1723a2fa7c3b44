"""Numbers about colours: of an image, of an image against the truth, and of several samples of one."""

import itertools

import numpy as np
from scipy import ndimage
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from coltran_jax.images.arrays import area_resize

# Specks and bars are looked for at the resolution at which colours are drawn.
_REDUCED = 64
_SPECK_DISTANCE = 30
_BAR_DISTANCE, _BAR_LIGHTNESS, _BAR_LENGTH = 20, 8, 12


def ab_distance(image: np.ndarray, other: np.ndarray) -> float:
    """Mean distance of two images' pixels in the ab plane of CIELAB (D65), (H, W, 3) uint8 each."""
    difference = rgb2lab(image)[..., 1:] - rgb2lab(other)[..., 1:]
    return float(np.linalg.norm(difference, axis=-1).mean())


def ciede2000(image: np.ndarray, other: np.ndarray) -> float:
    """Mean colour difference of two images' pixels by CIEDE2000, lightness included; (H, W, 3) uint8 each."""
    return float(deltaE_ciede2000(rgb2lab(image), rgb2lab(other)).mean())


def chroma(image: np.ndarray) -> float:
    """Mean chroma, the distance from gray in the ab plane of CIELAB (D65), of (H, W, 3) uint8."""
    return float(np.linalg.norm(rgb2lab(image)[..., 1:], axis=-1).mean())


def speck_percentage(image: np.ndarray) -> float:
    """Percentage of pixels that are specks: far in colour from what surrounds them.

    A speck is a pixel, of the image reduced to 64x64, that is more than 30 from the median of its eight neighbours in
    the ab plane of CIELAB.

    Args:
        image: (H, W, 3) uint8.
    """
    ab = _reduced_lab(image)[..., 1:]
    neighbours = np.ones((3, 3), bool)
    neighbours[1, 1] = False
    medians = [ndimage.median_filter(ab[..., i], footprint=neighbours, mode="nearest") for i in range(2)]
    return float(100 * (np.linalg.norm(ab - np.stack(medians, axis=-1), axis=-1) > _SPECK_DISTANCE).mean())


def has_bar(image: np.ndarray) -> bool:
    """Returns whether an image has a bar, which a sample has where a row has gone wrong.

    A bar is an edge of colour without an edge of lightness: twelve or more pixels side by side in a row, of the image
    reduced to 64x64, that are each more than 20 from the pixel above in the ab plane of CIELAB, and less than 8 from it
    in lightness.

    Args:
        image: (H, W, 3) uint8.
    """
    steps = np.diff(_reduced_lab(image), axis=0)
    edge = (np.linalg.norm(steps[..., 1:], axis=-1) > _BAR_DISTANCE) & (np.abs(steps[..., 0]) < _BAR_LIGHTNESS)
    windows = np.lib.stride_tricks.sliding_window_view(edge, _BAR_LENGTH, axis=1)
    return bool(windows.all(axis=-1).any())


def _reduced_lab(image: np.ndarray) -> np.ndarray:
    return rgb2lab(area_resize(image, _REDUCED, _REDUCED))


def diversity(samples: np.ndarray) -> float:
    """Mean `ab_distance` between all pairs of an image's samples.

    Args:
        samples: (S, H, W, 3) uint8, S of at least 2.
    """
    planes = [rgb2lab(sample)[..., 1:] for sample in samples]
    distances = [np.linalg.norm(a - b, axis=-1).mean() for a, b in itertools.combinations(planes, 2)]
    return float(np.mean(distances))


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal to noise ratio in dB, infinite of equal images; (H, W, 3) uint8 each."""
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(truth, image))


def ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004), Gaussian window, mean over channels; (H, W, 3) uint8, 11 or larger."""
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(truth, image, channel_axis=-1, data_range=255, **options))
