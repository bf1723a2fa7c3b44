"""Image files of several formats, written whole or not at all, with the metadata that they carry."""

import dataclasses
import functools
import importlib.util
import io
import pathlib
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from coltran_jax.errors import ImageError, UsageError
from coltran_jax.files import replacing
from coltran_jax.images.metadata import NONE, Metadata

# Rendering intent in the chunk sRGB of a PNG.
_RELATIVE_COLORIMETRIC = b"\1"
_TIFF_XMP = 700
# Types of a TIFF's tags.
_SHORT, _LONG = 3, 4


@dataclasses.dataclass(frozen=True)
class _Format:
    """A file format.

    Attributes:
        pillow: its name in Pillow.
        alpha: whether it holds transparency.
        quality: default of `Encoding.quality`; None where quality does not apply.
        compression: default of `Encoding.compression`; None where that does not apply.
    """

    pillow: str
    alpha: bool
    quality: int | None = None
    compression: int | None = None


# By the ending of the files. Level 2 of PNG takes a third of the time of zlib's default, 6, for files 3 % larger.
FORMATS = {
    "png": _Format("PNG", alpha=True, compression=2),
    "jpg": _Format("JPEG", alpha=False, quality=95),
    "webp": _Format("WEBP", alpha=True, quality=90),
    "tif": _Format("TIFF", alpha=True),
}


@dataclasses.dataclass(frozen=True)
class Encoding:
    """The format of the files that are written, and its options.

    Attributes:
        format: one of `FORMATS`.
        quality: of "jpg" and "webp", 1 to 100; None for the format's default.
        compression: of "png", 0 to 9, which changes size and time but no pixel; None for the default.

    Raises:
        UsageError: an option that does not apply to the format, or out of range.
    """

    format: str = "png"
    quality: int | None = None
    compression: int | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"--format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        for name, smallest, largest in (("quality", 1, 100), ("compression", 0, 9)):
            value = getattr(self, name)
            having = [key for key, other in FORMATS.items() if getattr(other, name) is not None]
            if value is not None and self.format not in having:
                raise UsageError(f"--{name} applies to {' and '.join(having)}, not to {self.format}")
            if value is not None and not smallest <= value <= largest:
                raise UsageError(f"--{name} must be {smallest} to {largest}, got {value}")

    @property
    def resolved(self) -> dict[str, Any]:
        """The options with the format's defaults in place of None."""
        chosen = FORMATS[self.format]
        quality = chosen.quality if self.quality is None else self.quality
        compression = chosen.compression if self.compression is None else self.compression
        return {"format": self.format, "quality": quality, "compression": compression}

    @property
    def keeps_sixteen_bits(self) -> bool:
        """Returns whether images of 16 bits can be written: as PNG or TIFF, where imagecodecs is installed."""
        return self.format in _SIXTEEN_BIT_ENCODERS and importlib.util.find_spec("imagecodecs") is not None

    def check_alpha(self, path: pathlib.Path) -> None:
        """Checks that the format holds transparency.

        Args:
            path: of an image that has it.

        Raises:
            ImageError: it holds none.
        """
        if not FORMATS[self.format].alpha:
            having = ", ".join(key for key, other in FORMATS.items() if other.alpha)
            raise ImageError(f"{path}: has transparency, which {self.format} does not hold; give --format {having}")


def write_image(
    path: pathlib.Path, image: np.ndarray, encoding: Encoding = Encoding(), metadata: Metadata = NONE
) -> None:
    """Writes an image, marked as sRGB, by rename; folders are made as needed.

    Args:
        path: the file; its ending is not looked at.
        image: (H, W, C) uint8: gray, gray and alpha, RGB, or RGB and alpha; uint16, in colour, where
            `keeps_sixteen_bits`.
        encoding: format and options.
        metadata: what the file carries. Text chunks go to PNG alone, and a comment to JPEG.

    Raises:
        OSError: it cannot be written.
        ImageError: the format holds no transparency, and the image has it.
    """
    if image.shape[-1] % 2 == 0:
        encoding.check_alpha(path)
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    with replacing(path) as temporary:
        if image.dtype == np.uint16:
            encode = _SIXTEEN_BIT_ENCODERS[encoding.format]
            temporary.write_bytes(encode(squeezed, library_options(encoding, metadata)))
        else:
            Image.fromarray(squeezed).save(temporary, **library_options(encoding, metadata))


def _sixteen_bit_png(image: np.ndarray, options: dict[str, Any]) -> bytes:
    """Encodes 16 bits, which Pillow does not write, with the metadata as Pillow writes them."""
    import imagecodecs

    pixels = bytes(imagecodecs.png_encode(image, level=options["compress_level"]))
    carrier = io.BytesIO()
    Image.new("RGB", (1, 1)).save(carrier, **options)
    header, *others = _chunks(pixels)
    carried = [chunk for name, chunk in _chunks(carrier.getvalue()) if name not in (b"IHDR", b"IDAT", b"IEND")]
    return pixels[:8] + header[1] + b"".join(carried) + b"".join(chunk for _, chunk in others)


def _sixteen_bit_tiff(image: np.ndarray, options: dict[str, Any]) -> memoryview:
    """Encodes 16 bits, which Pillow does not write: as 8 bits of an image twice as wide, its tags then corrected."""
    height, width, channels = image.shape
    two_bytes = np.ascontiguousarray(image, "<u2").view(np.uint8).reshape(height, 2 * width, channels)
    file = io.BytesIO()
    Image.fromarray(two_bytes).save(file, **options)
    tiff = file.getbuffer()
    (folder,) = struct.unpack_from("<L", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, folder)
    for entry in range(folder + 2, folder + 2 + 12 * count, 12):
        tag, kind, _, value = struct.unpack_from("<HHLL", tiff, entry)
        if tag == ExifTags.Base.ImageWidth:
            struct.pack_into({_SHORT: "<H", _LONG: "<L"}[kind], tiff, entry + 8, width)
        elif tag == ExifTags.Base.BitsPerSample:
            struct.pack_into(f"<{channels}H", tiff, value, *[16] * channels)
    return tiff


# Of images in colour, which results are.
_SIXTEEN_BIT_ENCODERS: dict[str, Callable[[np.ndarray, dict[str, Any]], bytes | memoryview]] = {
    "png": _sixteen_bit_png,
    "tif": _sixteen_bit_tiff,
}


def _chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Splits a PNG into the chunks after its signature: names, and whole chunks."""
    found, start = [], 8
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")
        found.append((png[start + 4 : start + 8], png[start:end]))
        start = end
    return found


def library_options(encoding: Encoding, metadata: Metadata = NONE) -> dict[str, Any]:
    """Returns the keyword arguments of Pillow's `Image.save`."""
    options: dict[str, Any] = {"format": FORMATS[encoding.format].pillow}
    if metadata.exif:
        options["exif"] = metadata.exif
    if metadata.dpi and encoding.format != "webp":
        options["dpi"] = metadata.dpi
    if encoding.format == "png":
        chunks = PngImagePlugin.PngInfo()
        chunks.add(b"sRGB", _RELATIVE_COLORIMETRIC)
        for key, value in metadata.text.items():
            chunks.add_itxt(key, value)
        if metadata.xmp:
            chunks.add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
        return {**options, "pnginfo": chunks, "compress_level": encoding.resolved["compression"]}
    options["icc_profile"] = srgb_profile()
    if encoding.format == "tif":
        if metadata.xmp:
            tags = Image.Exif()
            tags.load(metadata.exif)
            tags[_TIFF_XMP] = metadata.xmp
            options["exif"] = tags.tobytes()
        # Not compressed: libtiff, which compresses for Pillow, does not write the folders that EXIF has.
        return options
    if metadata.xmp:
        options["xmp"] = metadata.xmp
    options["quality"] = encoding.resolved["quality"]
    if encoding.format == "jpg":
        # Colour is what this is about: no chroma is thrown away (4:4:4).
        options["subsampling"] = 0
        if metadata.comment:
            options["comment"] = metadata.comment
    return options


@functools.cache
def srgb_profile() -> bytes:
    """The ICC profile of sRGB, for formats without a mark of their own."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
