import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from coltran_jax.evaluation.color_metrics import (
    ab_distance,
    chroma,
    ciede2000,
    diversity,
    has_bar,
    psnr,
    speck_percentage,
    ssim,
)
from coltran_jax.images.arrays import colorfulness

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


def test_ciede2000_knows_lightness_and_weighs_it_at_the_middle():
    dark, light = flat(60, 60, 60), flat(180, 180, 180)
    levels = [float(rgb2lab(image)[0, 0, 0]) for image in (dark, light)]
    # Of two grays only lightness differs; it weighs less the further their middle is from 50.
    from_50 = (np.mean(levels) - 50) ** 2
    weight = 1 + 0.015 * from_50 / np.sqrt(20 + from_50)
    assert ciede2000(dark, light) == pytest.approx((levels[1] - levels[0]) / weight, abs=0.02)
    one, other = RNG.integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert ciede2000(one, other) == pytest.approx(deltaE_ciede2000(rgb2lab(one), rgb2lab(other)).mean())
    assert ciede2000(one, one) == 0


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


def test_a_speck_is_a_pixel_unlike_its_neighbours():
    image = np.full((64, 64, 3), (120, 120, 120), np.uint8)
    assert speck_percentage(image) == 0
    image[10, 20] = (200, 60, 60)
    image[40:44, 40:44] = (200, 60, 60)
    # The corners of the square have five gray neighbours of eight, its other pixels fewer.
    assert speck_percentage(image) == pytest.approx(100 * (1 + 4) / 64**2)
    # At another resolution it is the same image.
    assert speck_percentage(image.repeat(4, axis=0).repeat(4, axis=1)) == speck_percentage(image)


def test_a_bar_is_an_edge_of_colour_without_one_of_lightness():
    red, green = (200, 60, 60), (0, 131, 0)
    assert abs(rgb2lab(np.uint8([[red, green]]))[0, :, 0] @ [1, -1]) < 2
    image = np.full((64, 64, 3), red, np.uint8)
    assert not has_bar(image)
    image[30, 5:16] = green
    assert not has_bar(image), "eleven pixels"
    image[30, 5:17] = green
    assert has_bar(image)
    image[30, 5:17] = (0, 220, 0)
    assert not has_bar(image), "lightness has that edge, too"


def test_chroma_is_the_distance_from_gray():
    assert chroma(flat(80, 80, 80)) == pytest.approx(0, abs=0.01)
    assert chroma(flat(255, 0, 0)) == pytest.approx(np.hypot(80.09, 67.20), abs=0.05)
