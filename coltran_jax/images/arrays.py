"""Image arithmetic: gray, coarse colours, area resize, square crop, chroma transfer.

Images are uint8 in 0..255, rows before columns, channels last. Functions that take part in a training or sampling
step work on NumPy and on JAX arrays alike and use integers only, so that host and device agree bit for bit.
"""

import functools
import math
from typing import Any

import numpy as np
from PIL import Image

# Gray weights of the release in units of 1/10000. They sum to 0.9999, so white is 254.
_GRAY_WEIGHTS = (2989, 5870, 1140)

BITS_PER_CHANNEL = 3
NUM_COARSE_COLORS = 2 ** (3 * BITS_PER_CHANNEL)
BIN_WIDTH = 2 ** (8 - BITS_PER_CHANNEL)

# A level of 8 bits, in levels of 16.
SIXTEEN_BITS = 257

# How much of a large image is worked on at a time.
_ROWS_AT_ONCE = 1024
# So many pixels that all that is made of them stays in a core's cache, and that BLAS takes one thread for them.
_CACHED_PIXELS = 2**14
_TINY = np.float32(1e-9)


@functools.cache
def _rounded_down_rgb() -> np.ndarray:
    """The few colours, packed as 65536 R + 256 G + B, where float32 falls just short of a whole gray value.

    The release sums in float32: each channel divided by 2**31 - 1, weighted, the sum multiplied by 2**31 and
    truncated. That is the floor of the exact sum except where the exact sum is a whole number and float32 comes out a
    rounding error below it. 2989 has an inverse modulo 10000, so each (G, B) has at most one such R.
    """
    red_weight, green_weight, blue_weight = _GRAY_WEIGHTS
    green, blue = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    red = -(green_weight * green + blue_weight * blue) * pow(red_weight, -1, 10000) % 10000
    rgb = np.stack([red, green, blue], axis=-1)[red < 256]
    channels = rgb.astype(np.float32) / np.float32(2**31 - 1)
    weights = np.array(_GRAY_WEIGHTS, np.float32) / np.float32(10000)
    weighted = channels * weights
    total = (weighted[:, 0] + weighted[:, 1]) + weighted[:, 2]
    release = (total * np.float32(2**31)).astype(np.int64)
    below = release < rgb @ np.array(_GRAY_WEIGHTS) // 10000
    return (rgb @ np.array([65536, 256, 1]))[below].astype(np.int32)


def gray_from_rgb(rgb: Any) -> Any:
    """Gray of a colour image, bit for bit as the release computes it.

    Args:
        rgb: (..., 3) uint8, NumPy or JAX.

    Returns:
        (..., 1) uint8, of the same kind.
    """
    rgb = rgb.astype(np.int32)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    red_weight, green_weight, blue_weight = _GRAY_WEIGHTS
    gray = (red_weight * red + green_weight * green + blue_weight * blue) // 10000
    packed = 65536 * red + 256 * green + blue
    below = (packed[..., None] == _rounded_down_rgb()).any(axis=-1)
    return (gray - below).astype(np.uint8)[..., None]


def coarse_from_rgb(rgb: Any) -> Any:
    """Index of the coarse colour, 64 r + 8 g + b of the three high bits: (..., 3) uint8 -> (...) int32 in 0..511."""
    high = rgb.astype(np.int32) // BIN_WIDTH
    return 64 * high[..., 0] + 8 * high[..., 1] + high[..., 2]


def rgb_from_coarse(bins: Any) -> Any:
    """Colour of a coarse index, each three-bit value times 32: (...) integers in 0..511 -> (..., 3) uint8."""
    bins = bins[..., None] // np.array([64, 8, 1], np.int32)
    return (bins % 8 * BIN_WIDTH).astype(np.uint8)


def _box_coverage(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """Returns which pixels of an axis each output pixel covers, and how much of each, in float32 as the release does.

    Output pixel i covers [i s, (i + 1) s) with s = length / size.

    Returns:
        indices (size, T) int, coverage (size, T) float32, both padded with coverage zero to the T of the widest
        output pixel; and s.
    """
    step = np.float32(length) / np.float32(size)
    start = np.arange(size, dtype=np.float32) * step
    stop = np.arange(1, size + 1, dtype=np.float32) * step
    first, last = np.floor(start).astype(int), np.ceil(stop).astype(int)
    indices = first[:, None] + np.arange((last - first).max())
    pixel = indices.astype(np.float32)
    ends_inside = pixel + 1 <= stop[:, None]
    starts_before = pixel < start[:, None]
    coverage = np.where(
        starts_before,
        np.where(ends_inside, pixel + 1 - start[:, None], step),
        np.where(ends_inside, np.float32(1), stop[:, None] - pixel),
    )
    coverage = np.where(indices < last[:, None], coverage, np.float32(0))
    return np.minimum(indices, length - 1), coverage, step


def area_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area (box filter) resize, up or down, rounding half to even, bit for bit as the release.

    The sums run in float32, along each row first and then down the rows, one pixel after another: a mean that is
    exactly half way between two values is rounded by this order's last bit.

    Args:
        image: (H, W) or (H, W, C) uint8.
        height: rows of the result.
        width: columns of the result.

    Returns:
        (height, width) or (height, width, C) uint8.
    """
    length, channels = image.shape[0], image[0, 0].size
    columns, column_coverage, column_step = _box_coverage(image.shape[1], width)
    rows, row_coverage, row_step = _box_coverage(length, height)
    # Channels lie side by side in a row, so that one gather takes all of them.
    flat = image.reshape(length, -1)
    taps = (columns.T[..., None] * channels + np.arange(channels)).reshape(columns.shape[1], -1)
    weights = np.repeat(column_coverage.T, channels, axis=1)
    out = np.empty((height, width * channels), np.uint8)
    # Blocks of rows, so that memory stays small for any image, tall panoramas too.
    block = max(1, _ROWS_AT_ONCE * height // length)
    for top in range(0, height, block):
        block_rows, coverage = rows[top : top + block], row_coverage[top : top + block]
        first = block_rows.min()
        source = flat[first : block_rows.max() + 1]
        narrow = sum(source.take(tap, axis=1) * weight for tap, weight in zip(taps, weights, strict=True))
        total = sum(
            narrow.take(row - first, axis=0) * part[:, None] for row, part in zip(block_rows.T, coverage.T, strict=True)
        )
        out[top : top + block] = np.rint(total * (np.float32(1) / (row_step * column_step)))
    return out.reshape(height, width, *image.shape[2:])


def enlarge(image: Any, factor: int) -> Any:
    """Area resize by a whole factor, which repeats pixels: (..., H, W, C) -> (..., factor H, factor W, C)."""
    return image.repeat(factor, axis=-3).repeat(factor, axis=-2)


def center_square(image: np.ndarray) -> np.ndarray:
    """The centre square with the side of the shorter side: (H, W, ...) -> (L, L, ...), L = min(H, W)."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def without_alpha(image: np.ndarray) -> np.ndarray:
    """Leaves out alpha, the second or fourth channel: (H, W, C) -> (H, W, 1 or 3)."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1]


def eight_bits(image: np.ndarray) -> np.ndarray:
    """Rounds 16 bits to 8: (...) uint16 -> (...) uint8; an image of 8 bits is returned as it is."""
    if image.dtype == np.uint8:
        return image
    return ((image.astype(np.uint32) + SIXTEEN_BITS // 2) // SIXTEEN_BITS).astype(np.uint8)


def luminance(image: np.ndarray) -> np.ndarray:
    """Luminance of a gray or colour image, weights as for gray but summing to one, so that white is 255.

    Args:
        image: (H, W, 1) or (H, W, 3) uint8, or uint16.

    Returns:
        (H, W) float32 in [0, 255].
    """
    if image.dtype == np.uint16:
        image = image / np.float32(SIXTEEN_BITS)
    if image.shape[-1] == 1:
        return image[..., 0].astype(np.float32)
    weights = np.array(_GRAY_WEIGHTS, np.float32) / np.float32(sum(_GRAY_WEIGHTS))
    return image.astype(np.float32) @ weights


def colorfulness(image: np.ndarray) -> float:
    """Hasler and Süsstrunk's measure (2003, "Measuring colourfulness in natural images", their M3).

    Args:
        image: (H, W, 3) uint8.

    Returns:
        0 of gray images, about 15 of slightly, 45 of averagely and 109 of extremely colourful ones.
    """
    red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    return float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))


def resize_smoothly(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a mask, (H, W) uint8, with soft edges (bilinear; where it shrinks, averaged): (height, width) uint8."""
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))


def transfer_chroma(image: np.ndarray, colorized: np.ndarray) -> np.ndarray:
    """Puts the enlarged chroma of a small colorized image on a large image's own luminance.

    Chroma is a pixel's difference from its own luminance, one number a channel: adding it to a gray leaves the
    luminance as it is. Where a channel would leave [0, 255] the whole difference is scaled down, which keeps hue and
    luminance; no channel is clipped on its own.

    Args:
        image: (H, W, 1) or (H, W, 3) uint8 or uint16, of which only the luminance is used.
        colorized: (h, w, 3) uint8, the same image squeezed to another size.

    Returns:
        (H, W, 3) of the image's type, luminance equal to the image's up to rounding.
    """
    height, width = image.shape[:2]
    small = colorized.astype(np.float32) - luminance(colorized)[..., None]
    planes = [_enlarged(small[..., channel], len(small), width) for channel in range(3)]
    # Rows are weighted as Pillow does, but in tiles that stay in a core's cache; most weights are zero.
    weights = _enlarged(np.eye(len(small), dtype=np.float32), height, len(small))
    scale = len(small) / height
    reach = math.ceil(2 * max(1, scale))
    out = np.empty((height, width, 3), image.dtype)
    rows_at_once = max(1, _CACHED_PIXELS // width)
    for top in range(0, height, rows_at_once):
        rows = slice(top, top + rows_at_once)
        taken = slice(max(0, int(top * scale) - reach), int(rows.stop * scale) + reach + 1)
        chroma = [weights[rows, taken] @ plane[taken] for plane in planes]
        _add_in_gamut(luminance(image[rows]), chroma, out[rows])
    return out


def _enlarged(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes by bicubic interpolation: (h, w) float32 -> (height, width)."""
    resized = Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def _add_in_gamut(light: np.ndarray, chroma: list[np.ndarray], out: np.ndarray) -> None:
    """Computes light + t chroma with the largest t <= 1 that keeps all channels in [0, 255].

    Args:
        light: (H, W) float32.
        chroma: of each channel (H, W) float32, overwritten.
        out: (H, W, 3) uint8, rounded, or uint16.
    """
    red, green, blue = chroma
    largest = np.maximum(red, green)
    np.maximum(largest, blue, out=largest)
    smallest = np.minimum(red, green)
    np.minimum(smallest, blue, out=smallest)
    # The largest reaches 255 first, the smallest 0. Where there is no chroma, any limit will do but 0 / 0.
    np.divide(255 - light, np.maximum(largest, _TINY, out=largest), out=largest)
    np.divide(light, np.maximum(np.negative(smallest, out=smallest), _TINY, out=smallest), out=smallest)
    limit = np.minimum(largest, smallest, out=largest)
    np.minimum(limit, 1, out=limit)
    for channel, plane in enumerate(chroma):
        np.multiply(plane, limit, out=plane)
        np.add(light, plane, out=plane)
        if out.dtype == np.uint16:
            np.multiply(plane, SIXTEEN_BITS, out=plane)
        np.rint(plane, out=plane)
        out[..., channel] = plane
