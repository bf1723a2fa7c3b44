"""Picture files: found in folders, read as uint8 arrays, written whole or not at all."""

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from coltran_jax.files import replacing

SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    }
)


class PictureError(ValueError):
    """A picture that cannot be read; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class Found:
    """Pictures named on a command line.

    Attributes:
        pictures: each file with the path, relative to the output folder and without suffix, that its results get.
        skipped: files in folders that do not have the suffix of a picture.
    """

    pictures: list[tuple[pathlib.Path, pathlib.PurePath]]
    skipped: list[pathlib.Path]


def find_pictures(paths: Sequence[pathlib.Path], output: pathlib.Path | None = None) -> Found:
    """The pictures that files and folders stand for; folders are searched to any depth, the output folder is not.

    A file named by itself is taken whatever its suffix. Results of a folder keep its sub-folders.

    Raises:
        PictureError: a path that does not exist, or a folder without a picture.
    """
    pictures, skipped = [], []
    for path in paths:
        if path.is_file():
            pictures.append((path, pathlib.PurePath(path.stem)))
        elif path.is_dir():
            inside, others = _in_folder(path, output)
            if not inside:
                raise PictureError(f"{path}: no pictures in this folder (looked for {' '.join(sorted(SUFFIXES))})")
            pictures += [(file, file.relative_to(path).with_suffix("")) for file in inside]
            skipped += others
        else:
            raise PictureError(f"{path}: no such file or folder")
    return Found(pictures, skipped)


def pictures_by_name(paths: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Pictures by their path within the folder, without suffix, in order; see `find_pictures`.

    Raises:
        PictureError: also where two have one name.
    """
    found: dict[str, pathlib.Path] = {}
    for path, name in find_pictures(paths).pictures:
        key = name.as_posix()
        if key in found:
            raise PictureError(f"{found[key]} and {path}: two pictures of one name")
        found[key] = path
    return found


def _in_folder(folder: pathlib.Path, output: pathlib.Path | None) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    pictures, others = [], []
    for name, folders, files in os.walk(folder):
        here = pathlib.Path(name)
        folders[:] = sorted(sub for sub in folders if not output or (here / sub).resolve() != output.resolve())
        for file in sorted(files):
            (pictures if pathlib.Path(file).suffix.lower() in SUFFIXES else others).append(here / file)
    return pictures, others


def read_picture(path: pathlib.Path) -> np.ndarray:
    """A picture as (H, W, C) uint8: C is 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.

    Turned as its EXIF orientation says; 16 bits are rounded to 8; the first frame of several.

    Raises:
        PictureError: not a picture, a damaged one, or one of an unknown kind.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
        image.load()
        image = ImageOps.exif_transpose(image)
    except Image.UnidentifiedImageError:
        raise PictureError(f"{path}: not a picture") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{path}: more pixels than the {2 * Image.MAX_IMAGE_PIXELS:,} that are read") from None
    # Decoders raise all kinds on damaged files, not OSError alone.
    except Exception as error:
        raise PictureError(f"{path}: damaged or unreadable ({' '.join(str(error).split())})") from None
    return _to_uint8(path, image)


def read_rgb(path: pathlib.Path) -> np.ndarray:
    """As `read_picture`, but `to_rgb`: (H, W, 3) uint8."""
    return to_rgb(read_picture(path))


def to_rgb(picture: np.ndarray) -> np.ndarray:
    """Without alpha, gray in all three channels: (H, W, C) -> (H, W, 3)."""
    colors = picture[..., :3] if picture.shape[-1] >= 3 else picture[..., :1]
    return np.broadcast_to(colors, (*colors.shape[:2], 3))


def _to_uint8(path: pathlib.Path, image: Image.Image) -> np.ndarray:
    mode = image.mode
    if mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise PictureError(f"{path}: values {values.min()}..{values.max()}, expected 8 or 16 bits")
        return ((values + 128) // 257).astype(np.uint8)[..., None]
    if mode == "F":
        raise PictureError(f"{path}: floating-point values, expected 8 or 16 bits")
    has_alpha = "A" in mode or mode.endswith("a") or "transparency" in image.info
    is_gray = mode in ("1", "L", "LA", "La")
    target = {(True, False): "L", (True, True): "LA", (False, False): "RGB", (False, True): "RGBA"}[is_gray, has_alpha]
    if mode == "La":
        image = image.convert("LA")
    pixels = np.asarray(image.convert(target))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def write_png(path: pathlib.Path, picture: np.ndarray) -> None:
    """(H, W, C) uint8 as PNG, by rename; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    squeezed = picture[..., 0] if picture.shape[-1] == 1 else picture
    with replacing(path) as temporary:
        Image.fromarray(squeezed).save(temporary, format="PNG")


def thumbnail(picture: np.ndarray, height: int, max_width: int) -> np.ndarray:
    """A copy that fits in (height, max_width), transparent parts white: (H, W, C) -> (h, w, 3) uint8."""
    squeezed = picture[..., 0] if picture.shape[-1] == 1 else picture
    image = Image.fromarray(squeezed).convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(ground, image).convert("RGB")
    scale = min(height / image.height, max_width / image.width)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], gap: int = 8) -> np.ndarray:
    """Rows of pictures side by side on white: lists of (h, w, 3) uint8 -> (H, W, 3) uint8."""
    cell_height = max(picture.shape[0] for row in rows for picture in row)
    columns = max(len(row) for row in rows)
    cell_width = max(picture.shape[1] for row in rows for picture in row)
    shape = (gap + len(rows) * (cell_height + gap), gap + columns * (cell_width + gap), 3)
    sheet = np.full(shape, 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            height, width = picture.shape[:2]
            top = gap + i * (cell_height + gap) + (cell_height - height) // 2
            left = gap + j * (cell_width + gap) + (cell_width - width) // 2
            sheet[top : top + height, left : left + width] = picture
    return sheet
