import numpy as np
import pytest

from coltran_jax.evaluation.color_metrics import ab_distance, colorfulness, diversity, psnr, ssim

RNG = np.random.default_rng(0)


def flat(*color):
    return np.full((16, 16, 3), color, np.uint8)


def test_colorfulness_of_halves_is_that_counted_by_hand():
    assert colorfulness(flat(80, 80, 80)) == 0
    # Red less green is 255 or 0; (red + green) / 2 - blue is 127.5 or -255.
    half = np.concatenate([flat(255, 0, 0), flat(0, 0, 255)])
    spread = np.hypot(127.5, 191.25)
    assert colorfulness(half) == pytest.approx(spread + 0.3 * np.hypot(127.5, -63.75))


def test_distances_in_ab_know_no_lightness():
    assert ab_distance(flat(10, 10, 10), flat(200, 200, 200)) == pytest.approx(0, abs=0.01)
    # CIELAB of sRGB's red and green, as colour science tables have them.
    expected = np.hypot(80.09 - -86.18, 67.20 - 83.18)
    assert ab_distance(flat(255, 0, 0), flat(0, 255, 0)) == pytest.approx(expected, abs=0.05)


def test_diversity_is_the_mean_over_pairs():
    red, green, gray = flat(255, 0, 0), flat(0, 255, 0), flat(9, 9, 9)
    pairs = [ab_distance(red, green), ab_distance(red, gray), ab_distance(green, gray)]
    assert diversity(np.stack([red, green, gray])) == pytest.approx(np.mean(pairs))
    assert diversity(np.stack([red, red])) == 0


def test_errors_against_the_truth():
    truth = RNG.integers(0, 246, (32, 32, 3), np.uint8)
    assert psnr(truth + np.uint8(10), truth) == pytest.approx(10 * np.log10(255**2 / 100))
    assert psnr(truth, truth) == np.inf
    assert ssim(truth, truth) == pytest.approx(1)
    assert ssim(RNG.integers(0, 256, truth.shape, np.uint8), truth) < 0.1
