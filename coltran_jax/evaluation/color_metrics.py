"""Numbers about colours: of a picture, of a picture against the truth, and of several samples of one."""

import itertools

import numpy as np
from skimage.color import rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def colorfulness(picture: np.ndarray) -> float:
    """Hasler and Süsstrunk's measure (2003, "Measuring colourfulness in natural images", their M3).

    Args:
        picture: (H, W, 3) uint8.

    Returns:
        0 of gray pictures, about 15 of slightly, 45 of averagely and 109 of extremely colourful ones.
    """
    red, green, blue = np.moveaxis(picture.astype(np.float64), -1, 0)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    return float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))


def ab_distance(picture: np.ndarray, other: np.ndarray) -> float:
    """Mean distance of two pictures' pixels in the ab plane of CIELAB (D65), (H, W, 3) uint8 each."""
    difference = rgb2lab(picture)[..., 1:] - rgb2lab(other)[..., 1:]
    return float(np.linalg.norm(difference, axis=-1).mean())


def diversity(samples: np.ndarray) -> float:
    """Mean `ab_distance` between all pairs of a picture's samples.

    Args:
        samples: (S, H, W, 3) uint8, S of at least 2.
    """
    planes = [rgb2lab(sample)[..., 1:] for sample in samples]
    distances = [np.linalg.norm(a - b, axis=-1).mean() for a, b in itertools.combinations(planes, 2)]
    return float(np.mean(distances))


def psnr(picture: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal to noise ratio in dB, infinite of equal pictures; (H, W, 3) uint8 each."""
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(truth, picture))


def ssim(picture: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004), Gaussian window, mean over channels; (H, W, 3) uint8, 11 or larger."""
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(truth, picture, channel_axis=-1, data_range=255, **options))
