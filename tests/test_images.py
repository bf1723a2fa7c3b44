from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from coltran_jax.images import arrays

SIDES = st.integers(1, 24)


def images(channels=3):
    shape = st.tuples(SIDES, SIDES, st.just(channels))
    return hnp.arrays(np.uint8, shape)


def test_gray_equals_the_release():
    values = golden("image_ops")
    np.testing.assert_array_equal(arrays.gray_from_rgb(values["gray/rgb"]), values["gray/gray"][:, None])


def test_gray_on_the_device_equals_float32_arithmetic_where_the_sum_is_whole():
    green, blue = (grid.ravel() for grid in np.meshgrid(np.arange(256), np.arange(256)))
    red = -(5870 * green + 1140 * blue) * pow(2989, -1, 10000) % 10000
    rgb = np.stack([red, green, blue], -1)[red < 256].astype(np.uint8)
    scaled = rgb.astype(np.float32) / np.float32(2**31 - 1) * np.array([0.2989, 0.5870, 0.1140], np.float32)
    expected = (((scaled[:, 0] + scaled[:, 1]) + scaled[:, 2]) * np.float32(2**31)).astype(np.int64)
    exact = rgb.astype(np.int64) @ np.array([2989, 5870, 1140]) // 10000
    assert (expected != exact).any()
    np.testing.assert_array_equal(arrays.gray_from_rgb(jnp.asarray(rgb))[:, 0], expected)


def test_white_is_254():
    assert arrays.gray_from_rgb(np.full((1, 1, 3), 255, np.uint8)).item() == 254


def test_coarse_colors_equal_the_release():
    values = golden("image_ops")
    np.testing.assert_array_equal(np.arange(256) // arrays.BIN_WIDTH, values["bits/8to3"])
    rgb = (values["bins/labels"] * arrays.BIN_WIDTH).astype(np.uint8)
    np.testing.assert_array_equal(arrays.coarse_from_rgb(rgb), values["bins/bins"])
    back = arrays.rgb_from_coarse(values["bins/all"].astype(np.int32))
    np.testing.assert_array_equal(back, values["bits/3to8"][values["bins/back"]])


@settings(deadline=None)
@given(images())
def test_coarse_colors_there_and_back_keep_the_high_bits(image):
    bins = arrays.coarse_from_rgb(image)
    back = arrays.rgb_from_coarse(bins)
    np.testing.assert_array_equal(back, image & 0b11100000)
    np.testing.assert_array_equal(arrays.coarse_from_rgb(jnp.asarray(back)), bins)


@pytest.mark.parametrize("case", range(8))
def test_area_resize_equals_the_release(case):
    values = golden("image_ops")
    size = int(values["area/cases"][case][2])
    resized = arrays.area_resize(values[f"area/{case}/in"], size, size)
    np.testing.assert_array_equal(resized, values[f"area/{case}/out"])


@pytest.mark.parametrize("case", range(4))
def test_center_square_equals_the_release(case):
    values = golden("image_ops")
    square = arrays.area_resize(arrays.center_square(values[f"square/{case}/in"]), 48, 48)
    np.testing.assert_array_equal(square, values[f"square/{case}/out"])


@settings(max_examples=40, deadline=None)
@given(images(channels=1), SIDES, SIDES)
def test_area_resize_is_the_mean_over_the_covered_area(image, height, width):
    def coverage(length, size, i):
        start, stop = Fraction(i * length, size), Fraction((i + 1) * length, size)
        parts = [max(0, min(j + 1, stop) - max(j, start)) / (stop - start) for j in range(length)]
        return [Fraction(part) for part in parts]

    resized = arrays.area_resize(image, height, width)
    rows = [coverage(image.shape[0], height, i) for i in range(height)]
    columns = [coverage(image.shape[1], width, i) for i in range(width)]
    values = [[int(value) for value in row] for row in image[..., 0]]
    for i, row in enumerate(rows):
        sums = [sum(r * values[y][x] for y, r in enumerate(row) if r) for x in range(image.shape[1])]
        for j, column in enumerate(columns):
            mean = float(sum(c * sums[x] for x, c in enumerate(column) if c))
            assert abs(int(resized[i, j, 0]) - mean) <= 0.5 + 1e-4


@settings(deadline=None)
@given(images(), st.integers(1, 5))
def test_enlarging_is_area_resize_by_a_whole_factor(image, factor):
    expected = arrays.area_resize(image, factor * image.shape[0], factor * image.shape[1])
    np.testing.assert_array_equal(arrays.enlarge(image, factor), expected)
    np.testing.assert_array_equal(arrays.enlarge(jnp.asarray(image), factor), expected)


def test_area_resize_does_not_depend_on_blocks(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (301, 77, 3), np.uint8)
    whole = arrays.area_resize(image, 64, 40)
    monkeypatch.setattr(arrays, "_ROWS_AT_ONCE", 10)
    np.testing.assert_array_equal(arrays.area_resize(image, 64, 40), whole)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([1, 3]).flatmap(images), images())
def test_transferred_chroma_leaves_luminance(image, colorized):
    result = arrays.transfer_chroma(image, colorized)
    assert result.shape == (*image.shape[:2], 3)
    # Rounding to whole values moves the luminance by at most half of one.
    assert np.abs(arrays.luminance(result) - arrays.luminance(image)).max() <= 0.501


@pytest.mark.parametrize("shape", [(97, 61), (9, 700), (300, 5), (16, 16)])
def test_transferred_chroma_is_enlarged_as_by_pillow(monkeypatch, shape):
    rng = np.random.default_rng(0)
    image, colorized = (rng.integers(0, 256, size, np.uint8) for size in ((*shape, 3), (16, 16, 3)))
    monkeypatch.setattr(arrays, "_CACHED_PIXELS", 300)
    light, small = arrays.luminance(image), colorized - arrays.luminance(colorized)[..., None]
    planes = [Image.fromarray(np.ascontiguousarray(small[..., channel])) for channel in range(3)]
    chroma = np.stack([plane.resize(shape[::-1], Image.Resampling.BICUBIC) for plane in planes], axis=-1)
    room = np.where(chroma > 0, 255 - light[..., None], light[..., None]) / np.abs(chroma)
    expected = light[..., None] + chroma * np.minimum(room.min(axis=-1), 1)[..., None]
    np.testing.assert_allclose(arrays.transfer_chroma(image, colorized), expected, atol=0.51)


def test_chroma_that_leaves_the_gamut_keeps_its_hue():
    image = np.full((4, 4, 1), 240, np.uint8)
    red = np.broadcast_to(np.array([200, 40, 40], np.uint8), (4, 4, 3))
    result = arrays.transfer_chroma(image, red)[0, 0].astype(float) - 240
    chroma = red[0, 0] - arrays.luminance(red)[0, 0]
    assert result.max() == pytest.approx(15, abs=0.5)
    np.testing.assert_allclose(result / result[0], chroma / chroma[0], atol=0.06)
