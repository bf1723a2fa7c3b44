"""Image files found in folders, and sheets of images."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from coltran_jax.errors import ImageError
from coltran_jax.files import is_remote
from coltran_jax.images.arrays import without_alpha
from coltran_jax.images.decoding import PLUGIN_SUFFIXES, STANDARD_INPUT, read_image

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
        *PLUGIN_SUFFIXES,
    }
)


@dataclasses.dataclass(frozen=True)
class Found:
    """Images named on a command line.

    Attributes:
        images: each file with the path, relative to the output folder and without suffix, that its results get.
        skipped: files in folders that do not have the suffix of an image, are hidden, or are no regular files.
    """

    images: list[tuple[pathlib.Path, pathlib.PurePath]]
    skipped: list[pathlib.Path]


def find_images(paths: Sequence[pathlib.Path], output: pathlib.Path | None = None) -> Found:
    """The images that files and folders stand for; folders are searched to any depth, links to
    folders among them, but not the output folder nor hidden ones.

    A file named by itself is taken whatever its suffix; "-" is the standard input, whose results are called "stdin".
    Results of a folder keep its sub-folders.

    Raises:
        ImageError: a path that does not exist, or a folder without an image.
    """
    images, skipped = [], []
    for path in paths:
        if str(path) in STANDARD_INPUT:
            images.append((path, pathlib.PurePath("stdin")))
        elif path.is_file():
            images.append((path, pathlib.PurePath(path.stem)))
        elif path.is_dir():
            inside, others = (_in_store if is_remote(path) else _in_folder)(path, output)
            if not inside:
                raise ImageError(f"{path}: no images in this folder (looked for {' '.join(sorted(SUFFIXES))})")
            images += [(file, pathlib.PurePath(file.relative_to(path).as_posix()).with_suffix("")) for file in inside]
            skipped += others
        else:
            what = "neither a regular file nor a folder" if path.exists() else "no such file or folder"
            raise ImageError(f"{path}: {what}")
    return Found(images, skipped)


def images_by_name(paths: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Images by their path within the folder, without suffix, in order; see `find_images`.

    Raises:
        ImageError: also where two have one name.
    """
    found: dict[str, pathlib.Path] = {}
    for path, name in find_images(paths).images:
        key = name.as_posix()
        if key in found:
            raise ImageError(f"{found[key]} and {path}: two images of one name")
        found[key] = path
    return found


def _in_folder(folder: pathlib.Path, output: pathlib.Path | None) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    images: list[pathlib.Path] = []
    others: list[pathlib.Path] = []
    # A link may lead back to a folder that is being searched, or to one that was.
    searched = {folder.resolve()} | ({output.resolve()} if output else set())
    for name, folders, files in os.walk(folder, followlinks=True):
        here = pathlib.Path(name)
        inside = []
        # Links last: what is also there under its own name keeps that name.
        for sub in sorted(folders, key=lambda sub: ((here / sub).is_symlink(), sub)):
            target = (here / sub).resolve()
            if not sub.startswith(".") and target not in searched:
                searched.add(target)
                inside.append(sub)
        folders[:] = inside
        for file in sorted(files):
            path = here / file
            is_image = path.suffix.lower() in SUFFIXES and not file.startswith(".") and path.is_file()
            (images if is_image else others).append(path)
    return images, others


def _in_store(folder: Any, output: Any) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Finds what `_in_folder` does, in an object store, whose listing has the files at any depth."""
    images: list[pathlib.Path] = []
    others: list[pathlib.Path] = []
    inside_output = f"{output.path}/" if output and is_remote(output) and output.fs == folder.fs else None
    for key in sorted(folder.fs.find(folder.path)):
        path = folder / key[len(folder.path) :].lstrip("/")
        if inside_output and key.startswith(inside_output):
            continue
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        (others if hidden or path.suffix.lower() not in SUFFIXES else images).append(path)
    return images, others


def read_rgb(path: pathlib.Path) -> np.ndarray:
    """Reads an image as RGB: (H, W, 3) uint8; see `read_image`."""
    return to_rgb(read_image(path))


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Drops alpha and repeats gray in three channels: (H, W, C) -> (H, W, 3)."""
    colors = without_alpha(image)
    return np.broadcast_to(colors, (*colors.shape[:2], 3))


def thumbnail(image: np.ndarray, height: int, max_width: int) -> np.ndarray:
    """A copy that fits in (height, max_width), transparent parts white: (H, W, C) -> (h, w, 3) uint8."""
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    layer = Image.fromarray(squeezed).convert("RGBA")
    ground = Image.new("RGBA", layer.size, "white")
    flat = Image.alpha_composite(ground, layer).convert("RGB")
    scale = min(height / flat.height, max_width / flat.width)
    size = (max(1, round(flat.width * scale)), max(1, round(flat.height * scale)))
    return np.asarray(flat.resize(size, Image.Resampling.LANCZOS))


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], gap: int = 8) -> np.ndarray:
    """Rows of images side by side on white: lists of (h, w, 3) uint8 -> (H, W, 3) uint8."""
    cell_height = max(image.shape[0] for row in rows for image in row)
    columns = max(len(row) for row in rows)
    cell_width = max(image.shape[1] for row in rows for image in row)
    shape = (gap + len(rows) * (cell_height + gap), gap + columns * (cell_width + gap), 3)
    sheet = np.full(shape, 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            height, width = image.shape[:2]
            top = gap + i * (cell_height + gap) + (cell_height - height) // 2
            left = gap + j * (cell_width + gap) + (cell_width - width) // 2
            sheet[top : top + height, left : left + width] = image
    return sheet
