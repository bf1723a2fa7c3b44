"""A photograph that is open on the page of the demo: what is painted on it, and its colorizations."""

import dataclasses
import pathlib
import re
import shutil
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from coltran_jax.errors import ImageError
from coltran_jax.images import arrays, heat_map
from coltran_jax.images.decoding import header_of, read_image
from coltran_jax.images.encoding import write_image
from coltran_jax.images.hints import PAINTED
from coltran_jax.pipeline import Colorization

# Pixels of the longer side of what the page shows to paint on.
_CANVAS = 768


@dataclasses.dataclass
class Work:
    """A photograph and its colorizations, of one visit.

    Attributes:
        folder: for files of the visit, which nobody else writes to.
        name: of the photograph.
        image: (H, W, C) uint8.
        results: (H, W, 3 or 4) uint8 each, the samples that the page shows.
        entropy_bits: (h, w) float32 each.
        chosen: the number of the sample that was clicked on.
        shown: the folder of the samples' files, another one each time: browsers keep what they got from an address.
    """

    folder: pathlib.Path
    name: str
    image: np.ndarray
    results: list[np.ndarray] = dataclasses.field(default_factory=list)
    entropy_bits: list[np.ndarray] = dataclasses.field(default_factory=list)
    chosen: int = 0
    shown: pathlib.Path | None = None

    def show(self, result: Colorization) -> list[tuple[str, str]]:
        """Takes up a result and writes its samples.

        Returns:
            For each sample its file and a caption.
        """
        self.results, self.entropy_bits, self.chosen = list(result.images), list(result.entropy_bits), 0
        shutil.rmtree(self.folder, ignore_errors=True)
        self.shown = self.folder / uuid.uuid4().hex
        bits = -result.log_likelihood_bits / result.coarse[0, ..., 0].size
        for number, image in enumerate(self.results):
            write_image(self.file(number), image)
        return [
            (str(self.file(number)), f"{number + 1}: {value:.2f} bits a pixel") for number, value in enumerate(bits)
        ]

    def file(self, number: int) -> pathlib.Path:
        """Returns the file of a sample."""
        assert self.shown is not None
        return self.shown / f"{self.name}-{number + 1}.png"

    def entropy_map(self) -> np.ndarray:
        """Draws where the colorizer was undecided about the chosen sample: (H, W, 3) uint8."""
        return heat_map.entropy_map(self.entropy_bits[self.chosen], *self.image.shape[:2])


def opened(path: pathlib.Path, folder: pathlib.Path, max_megapixels: float) -> Work:
    """Reads an upload.

    Args:
        path: the file.
        folder: for files of the visit.
        max_megapixels: of images that are read.

    Raises:
        ImageError: it is no image, or has more pixels; the message has the file's name, not where it lies.
    """
    # The name is a stranger's.
    name = re.sub(r"[^\w-]", "_", path.stem)[:64] or "image"
    try:
        pixels = header_of(path).pixels
        if pixels > max_megapixels * 1e6:
            raise ImageError(f"{path}: {pixels / 1e6:.1f} megapixels, expected at most {max_megapixels:g}")
        image = read_image(path)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), path.name)) from None
    return Work(folder, name, image)


def canvas(image: np.ndarray, *, gray: bool) -> np.ndarray:
    """Resizes an image, (H, W, C) uint8, to paint on: (h, w, 3) uint8 of the same aspect ratio."""
    colors = arrays.without_alpha(image)
    if gray:
        colors = np.rint(arrays.luminance(colors)).astype(np.uint8)[..., None]
    height, width = colors.shape[:2]
    scale = _CANVAS / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    whole = Image.fromarray(np.ascontiguousarray(np.broadcast_to(colors, (height, width, 3))))
    return np.asarray(whole.resize(size, Image.Resampling.LANCZOS))


def painted(layers: Sequence[np.ndarray]) -> np.ndarray | None:
    """Joins layers that were painted, later ones above: (H, W, 4) uint8 each -> the same, or None for no paint."""
    joined: Any = None
    for layer in layers:
        joined = layer if joined is None else np.where(layer[..., 3:] >= PAINTED, layer, joined)
    if joined is None or not (joined[..., 3] >= PAINTED).any():
        return None
    return joined
