"""Known colours: hints that a user gives, and regions whose colours are kept. Files of both."""

import csv
import dataclasses
import math
import pathlib
import re

import numpy as np

from coltran_jax.errors import ImageError
from coltran_jax.images import arrays
from coltran_jax.images.decoding import read_image

# From this alpha on, a pixel of a hint is painted.
PAINTED = 128
# The radius of a hint that does not say it, as a part of the image's shorter side: a few coarse pixels.
_RADIUS = 1 / 64
_ROW = "x,y,#rrggbb or x,y,#rrggbb,radius"
UNKNOWN = -1


def coarse_hints(hints: np.ndarray, gray: np.ndarray) -> np.ndarray:
    """Coarse colours that hints make known.

    A coarse pixel is known where a painted pixel lies in it. It gets the mean colour of those, whose chroma goes onto
    the luminance of the grayscale image: a hint says which colour, the image how light it is.

    Args:
        hints: (H, W, 4) uint8, RGB and alpha, painted where alpha is at least 128.
        gray: (h, w, 1) uint8, the grayscale image at the coarse resolution.

    Returns:
        (h, w) int32, 0..511, and -1 where colours are unknown.
    """
    height, width = gray.shape[:2]
    for axis, size in enumerate((height, width)):
        hints = hints.repeat(math.ceil(size / hints.shape[axis]), axis=axis)
    rows, columns = np.nonzero(hints[..., 3] >= PAINTED)
    cells = rows * height // hints.shape[0] * width + columns * width // hints.shape[1]
    counts = np.bincount(cells, minlength=height * width)
    colors = hints[rows, columns, :3].T
    sums = np.stack([np.bincount(cells, weights=channel, minlength=height * width) for channel in colors], axis=-1)
    means = np.rint(sums / np.maximum(counts, 1)[:, None]).astype(np.uint8).reshape(height, width, 3)
    coarse = arrays.coarse_from_rgb(arrays.transfer_chroma(gray, means))
    return np.where(counts.reshape(height, width) > 0, coarse, UNKNOWN).astype(np.int32)


def coarse_kept(small: np.ndarray, redraw: np.ndarray) -> np.ndarray:
    """Coarse colours that are known because no part of their pixel is redrawn.

    Args:
        small: (h, w, 3) uint8, the colour image at the coarse resolution.
        redraw: (H, W) uint8, 0 where colours are kept.

    Returns:
        (h, w) int32, 0..511, and -1 where colours are unknown.
    """
    touched = arrays.area_resize(np.where(redraw > 0, np.uint8(255), np.uint8(0)), *small.shape[:2])
    return np.where(touched == 0, arrays.coarse_from_rgb(small), UNKNOWN).astype(np.int32)


def restored(image: np.ndarray, result: np.ndarray, redraw: np.ndarray) -> np.ndarray:
    """Restores the colours that are kept in a result.

    Args:
        image: (H, W, 3), what was colorized.
        result: (H, W, 3) of the same type.
        redraw: (H', W') uint8, 0 where pixels of the image are kept as they are, 255 where those of the result are;
            between them, a mixture. Resized to the image.

    Returns:
        (H, W, 3) of the same type.
    """
    if redraw.shape != image.shape[:2]:
        redraw = arrays.resize_smoothly(redraw, *image.shape[:2])
    share = redraw[..., None].astype(np.float32) / 255
    return np.rint(image + share * (result.astype(np.float32) - image)).astype(image.dtype)


@dataclasses.dataclass(frozen=True)
class KnownColors:
    """Colours of an image that are known before it is colorized.

    Attributes:
        hints: (H', W', 4) uint8, painted colours, of any size of the image's aspect ratio; None for none. See
            `coarse_hints`.
        redraw: (H', W') uint8, of any such size: the region whose colours are redrawn, 255, while the image's own are
            kept where it is 0; None to redraw all.
    """

    hints: np.ndarray | None = None
    redraw: np.ndarray | None = None

    def check(
        self,
        image: np.ndarray,
        *,
        square: bool = False,
        hints_name: str = "hints",
        redraw_name: str = "the region to redraw",
    ) -> None:
        """Checks that this can be known of an image, (H, W, C).

        Args:
            image: the whole image.
            square: whether its centre square alone is colorized.
            hints_name: of the hints in messages.
            redraw_name: of the region in messages.

        Raises:
            ImageError: an array of another form or aspect ratio, no painted pixel, or a region that is empty, is all
                of the image, or is one of a gray image.
        """
        where = "in the centre square " if square else ""
        seen = arrays.center_square if square else np.asarray
        if self.hints is not None:
            _check_array(hints_name, self.hints, 3)
            _check_aspect(hints_name, self.hints, image)
            if not (seen(self.hints)[..., 3] >= PAINTED).any():
                raise ImageError(
                    f"{hints_name}: no pixel {where}is painted, expected some whose alpha is at least {PAINTED}"
                )
        if self.redraw is None:
            return
        _check_array(redraw_name, self.redraw, 2)
        _check_aspect(redraw_name, self.redraw, image)
        if image.shape[-1] < 3 or (image[..., :1] == image[..., 1:3]).all():
            raise ImageError(f"{redraw_name}: the image is gray, expected one in colour, whose colours can be kept")
        redraw = seen(self.redraw)
        if not redraw.any():
            raise ImageError(f"{redraw_name}: every pixel {where}is black, expected white where colours are redrawn")
        if redraw.all():
            raise ImageError(f"{redraw_name}: no pixel {where}is black, expected black where colours are kept")

    def cropped(self) -> "KnownColors":
        """Returns what is known of the centre square."""
        parts = (None if x is None else arrays.center_square(x) for x in (self.hints, self.redraw))
        return KnownColors(*parts)

    def coarse(self, small: np.ndarray, gray: np.ndarray) -> np.ndarray:
        """Coarse colours that are known; hints come before what is kept.

        Args:
            small: (h, w, C) uint8, the image at the coarse resolution.
            gray: (h, w, 1) uint8, what the colorizer sees of it.

        Returns:
            (h, w) int32, 0..511, and -1 where colours are unknown.
        """
        known = np.full(gray.shape[:2], UNKNOWN, np.int32)
        if self.redraw is not None:
            known = coarse_kept(small[..., :3], self.redraw)
        if self.hints is not None:
            hinted = coarse_hints(self.hints, gray)
            known = np.where(hinted == UNKNOWN, known, hinted)
        return known


def _check_array(what: str, array: np.ndarray, ndim: int) -> None:
    if array.dtype != np.uint8 or array.ndim != ndim or (ndim == 3 and array.shape[2] != 4) or 0 in array.shape:
        expected = "uint8 (H, W, 4)" if ndim == 3 else "uint8 (H, W)"
        raise ImageError(f"{what}: {array.dtype} {array.shape}, expected {expected}")


def _check_aspect(what: str, array: np.ndarray, image: np.ndarray) -> None:
    (height, width), (own_height, own_width) = array.shape[:2], image.shape[:2]
    # Sizes of one aspect ratio, each rounded to whole pixels.
    if abs(width * own_height - height * own_width) > (own_height + own_width) / 2:
        raise ImageError(
            f"{what}: {width}x{height} pixels, expected the image's size, {own_width}x{own_height}, or one of its "
            "aspect ratio"
        )


def read_known(hints: pathlib.Path | None, redraw: pathlib.Path | None, image: np.ndarray, square: bool) -> KnownColors:
    """Reads the colours of an image that files make known.

    Args:
        hints: see `read_hints`; None for none.
        redraw: see `read_region`; None for none.
        image: (H, W, C), whose colours they are.
        square: whether its centre square alone is colorized.

    Raises:
        ImageError: a file that cannot be read, or does not suit the image.
    """
    known = KnownColors(
        None if hints is None else read_hints(hints, *image.shape[:2]),
        None if redraw is None else read_region(redraw),
    )
    known.check(image, square=square, hints_name=str(hints), redraw_name=str(redraw))
    return known


def read_hints(path: pathlib.Path, height: int, width: int) -> np.ndarray:
    """Reads hints: an image that is painted where colours are known, or a table (.csv) of dots.

    Args:
        path: the file. A row of a table is x,y,#rrggbb or x,y,#rrggbb,radius in the image's pixels, from the top left.
            Without a radius it is a 64th of the shorter side.
        height: of the image.
        width: of the image.

    Returns:
        (H', W', 4) uint8, of the table the image's size.

    Raises:
        ImageError: a file that cannot be read or has no transparency, a row of another form, or a dot outside of the
            image.
    """
    if path.suffix.lower() == ".csv":
        return _drawn(path, height, width)
    hints = read_image(path)
    if hints.shape[-1] % 2:
        raise ImageError(
            f"{path}: has no transparency, expected an image that is transparent where colours are unknown"
        )
    return hints if hints.shape[-1] == 4 else hints[..., [0, 0, 0, 1]]


def read_region(path: pathlib.Path) -> np.ndarray:
    """Reads the mask of a region to redraw: white there, black where colours are kept; (H, W) uint8.

    Raises:
        ImageError: a file that cannot be read.
    """
    return np.rint(arrays.luminance(arrays.without_alpha(read_image(path)))).astype(np.uint8)


def _drawn(path: pathlib.Path, height: int, width: int) -> np.ndarray:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), start=1) if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImageError(f"{path}: cannot be read as a table of hints ({error})") from None
    hints = np.zeros((height, width, 4), np.uint8)
    y, x = np.ogrid[:height, :width]
    if rows and rows[0][1][0].strip().lower() == "x":
        del rows[0]
    if not rows:
        raise ImageError(f"{path}: has no hints, expected rows {_ROW}")
    for number, row in rows:
        column, line, color, radius = _parsed(f"{path}, line {number}", row, min(height, width) * _RADIUS)
        if not (0 <= column < width and 0 <= line < height):
            raise ImageError(
                f"{path}, line {number}: ({column:g}, {line:g}) is outside of the image, {width}x{height} pixels"
            )
        # The pixel itself, however small the radius.
        column, line = math.floor(column), math.floor(line)
        hints[(x - column) ** 2 + (y - line) ** 2 <= radius**2] = (*color, 255)
    return hints


def _parsed(where: str, row: list[str], default_radius: float) -> tuple[float, float, tuple[int, ...], float]:
    fields = [field.strip() for field in row]
    try:
        column, line, radius = (float(text) for text in (*fields[:2], (fields[3:] or [str(default_radius)])[0]))
    except ValueError:
        column = line = radius = math.nan
    found = re.fullmatch(r"#([0-9a-fA-F]{6})", fields[2]) if len(fields) in (3, 4) else None
    if not (found and math.isfinite(column + line + radius) and radius >= 0):
        raise ImageError(f"{where}: {','.join(row)!r}, expected {_ROW}")
    return column, line, tuple(bytes.fromhex(found[1])), radius
