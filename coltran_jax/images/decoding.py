"""Image files to uint8 arrays in sRGB: what a colour-managed viewer shows of them."""

import contextlib
import dataclasses
import functools
import importlib
import io
import logging
import pathlib
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, TiffImagePlugin

from coltran_jax.errors import ImageError, TruncatedError, one_line
from coltran_jax.files import is_remote
from coltran_jax.images.arrays import eight_bits
from coltran_jax.images.encoding import srgb_profile
from coltran_jax.images.metadata import Metadata, metadata_of

# Names of the standard input.
STANDARD_INPUT = ("-", "/dev/stdin")

# Endings of files that plug-ins of Pillow read.
PLUGIN_SUFFIXES = frozenset({".heic", ".heif", ".jxl"})

# Tags of TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLES_PER_PIXEL, _SAMPLE_FORMAT = 258, 262, 277, 339
_WHITE_IS_ZERO = 0
_UNSIGNED = 1
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# The colour space that an ICC profile must have to belong to an image of a mode.
_PROFILE_SPACES = {"I;16": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


@dataclasses.dataclass(frozen=True)
class Scan:
    """The pixels of an image file, and what it carries beside them.

    Attributes:
        pixels: (H, W, C) uint8, or uint16: C is 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
        metadata: what it carries beside them.
        bits: of the file's values, 8 or 16 (12 among them).
    """

    pixels: np.ndarray
    metadata: Metadata
    bits: int = 8


def read_image(path: pathlib.Path, *, allow_truncated: bool = False) -> np.ndarray:
    """Reads the pixels of an image: (H, W, C) uint8; see `read_scan`."""
    return read_scan(path, allow_truncated=allow_truncated).pixels


def read_scan(
    path: pathlib.Path, *, page: int | None = None, allow_truncated: bool = False, sixteen_bits: bool = False
) -> Scan:
    """Reads an image and what it carries. Several threads may read at once.

    The EXIF orientation is applied. An embedded ICC profile is applied, too: colours are converted to sRGB, with
    relative colorimetric intent and black point compensation.

    Args:
        path: the file; "-" for the standard input.
        page: page of a TIFF or frame of an animation, from 0; None for the first, with a notice if there are others.
        allow_truncated: read what is there of a file that ends early, with a warning; the rest is gray or black.
        sixteen_bits: keep the 16 bits (or 12) of a grayscale image, for which imagecodecs must be installed if it has a
            profile. Otherwise they are rounded to 8.

    Raises:
        ImageError: not an image, a damaged one, or one of a kind that is not read.
    """
    file: pathlib.Path | io.BytesIO = path
    if str(path) in STANDARD_INPUT:
        file = io.BytesIO(sys.stdin.buffer.read())
    elif is_remote(path):
        try:
            file = io.BytesIO(path.read_bytes())
        # Each store has exceptions of its own.
        except Exception as error:
            raise ImageError(f"{path}: cannot be read from its store ({one_line(error)})") from None
    # Pillow has one switch, for all threads, that says whether to read files that end early.
    with _NAMED.path(path), _SWITCH if allow_truncated else contextlib.nullcontext():
        return _decoded(path, file, page, allow_truncated, sixteen_bits)


class Header(NamedTuple):
    """The header of an image file: number of pixels of a page, and of pages or frames."""

    pixels: int
    pages: int


def header_of(path: pathlib.Path) -> Header:
    """Reads the header of a file; no pixels and one page where it cannot be read, of which `read_scan` tells."""
    try:
        with (
            path.open("rb") if is_remote(path) else contextlib.nullcontext(path) as file,
            _NAMED.path(None),
            _opened(path, file) as image,
        ):
            return Header(image.height * image.width, getattr(image, "n_frames", 1))
    # Whatever a damaged file makes Pillow raise.
    except Exception:
        return Header(0, 1)


class _NamedWarnings:
    """Logs Pillow's warnings with the name of the file that a thread is reading, each once.

    Python keeps one list of filters and one place to show warnings for all threads: the first thread that reads sets
    them, the last sets them back.
    """

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()
        self._reading = threading.local()
        self._caught: contextlib.ExitStack | None = None

    @contextlib.contextmanager
    def path(self, path: pathlib.Path | None) -> Iterator[None]:
        """Names the file that this thread reads; None keeps its warnings quiet."""
        with self._lock:
            self.count += 1
            if self.count == 1:
                self._caught = contextlib.ExitStack()
                self._caught.enter_context(warnings.catch_warnings())
                warnings.simplefilter("always")
                # Of Python's own, about code and not about images.
                for kind in (ResourceWarning, DeprecationWarning):
                    warnings.simplefilter("ignore", kind)
                self._show, warnings.showwarning = warnings.showwarning, self._log
        self._reading.path = path
        try:
            yield
        finally:
            del self._reading.path
            with self._lock:
                self.count -= 1
                if self.count == 0 and self._caught is not None:
                    self._caught.close()

    def _log(self, message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if not hasattr(self._reading, "path"):
            self._show(message, category, *args, **kwargs)
        elif self._reading.path is not None:
            path = self._reading.path
            _warn(f"{path}: {one_line(message)}")


_NAMED = _NamedWarnings()
_SWITCH = threading.Lock()


@functools.cache
def _warn(message: str) -> None:
    logging.warning("%s", message)


def _decoded(
    path: pathlib.Path, file: pathlib.Path | io.BytesIO, page: int | None, allow_truncated: bool, sixteen_bits: bool
) -> Scan:
    image = _opened(path, file)
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and page is None:
        _warn(f"{path}: of {pages} pages or frames, the first is read")
    try:
        image.seek(page or 0)
        # Of a TIFF; what is made of the image below has none.
        tags = dict(getattr(image, "tag_v2", {}))
        loaded = _loaded(path, file, image, allow_truncated)
        # A copy takes as long as a tenth of decoding: only where there is something to rotate.
        rotated = loaded.getexif().get(ExifTags.Base.Orientation, 1) != 1
        image = ImageOps.exif_transpose(loaded) if rotated else loaded
    # Decoders raise all kinds on damaged files, not OSError alone.
    except Exception as error:
        message = one_line(error)
        if "truncated" in message or "premature end" in message.lower():
            raise TruncatedError(f"{path}: the file ends early ({message})") from None
        raise ImageError(f"{path}: damaged or unreadable ({message})") from None
    metadata = metadata_of(path, loaded, image)
    if image.mode.startswith("I"):
        return Scan(_from_sixteen_bits(path, image, tags, keep=sixteen_bits), metadata, 16)
    return Scan(_from_eight_bits(path, image), metadata)


@functools.cache
def _register_plugins() -> None:
    """Lets Pillow read HEIC and JPEG XL where the packages for that are installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")


def _opened(path: pathlib.Path, file: pathlib.Path | IO[bytes]) -> Image.Image:
    _register_plugins()
    try:
        image = Image.open(file)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and ExifTags.Base.Orientation in image.tag_v2:
            # Pillow maps a named file of plain pixels to memory, rows as long as those of the rotated image.
            image.filename = ""
        return image
    except Image.UnidentifiedImageError:
        raise ImageError(f"{path}: {_why_unidentified(path, file)}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path}: more pixels than the {2 * (Image.MAX_IMAGE_PIXELS or 0):,} that are read") from None
    except Exception as error:
        raise ImageError(f"{path}: damaged or unreadable ({one_line(error)})") from None


def _loaded(
    path: pathlib.Path, file: pathlib.Path | io.BytesIO, image: Image.Image, allow_truncated: bool
) -> Image.Image:
    """The image with its pixels."""
    if not allow_truncated:
        image.load()
        return image
    try:
        image.load()
    except OSError as error:
        logging.warning("%s: the file ends early; coloured as far as it goes (%s)", path, error)
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            image = _opened(path, file)
            image.load()
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before
    return image


def _why_unidentified(path: pathlib.Path, image: pathlib.Path | IO[bytes]) -> str:
    with open(image, "rb") if isinstance(image, pathlib.Path) else contextlib.nullcontext(image) as file:
        file.seek(0)
        head = file.read(8)
        if not head.startswith(_TIFF_SIGNATURES):
            suffix = path.suffix.lower()
            extra = "; pip install 'coltran_jax[archive]' reads it" if suffix in PLUGIN_SUFFIXES else ""
            return f"not an image of a format that is read{extra}"
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(tags.next)
            tags.load(file)
            bits, samples = tags.get(_BITS_PER_SAMPLE, (1,)), tags.get(_SAMPLES_PER_PIXEL, 1)
        except Exception as error:
            return f"a damaged TIFF ({one_line(error)})"
    return f"a TIFF with {samples} samples of {'/'.join(map(str, bits))} bits a pixel, which is not read"


def _from_eight_bits(path: pathlib.Path, image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise ImageError(f"{path}: floating-point values, expected integers of 8 or 16 bits")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBa", "PA"):
        image = image.convert("RGBA")
    has_alpha = image.mode in ("LA", "RGBA") or "transparency" in image.info
    is_gray = image.mode in ("1", "L", "LA")
    alpha = image.convert("LA" if is_gray else "RGBA").getchannel("A") if has_alpha else None
    if image.mode not in ("CMYK", "LAB"):
        profile = image.info.get("icc_profile")
        image = _converted(image, "L" if is_gray else "RGB")
        if profile:
            image.info["icc_profile"] = profile
    if is_gray:
        levels = _gray_levels(path, image.info.get("icc_profile"))
        colors = np.asarray(image) if levels is None else levels[np.asarray(image) * np.uint16(257)]
    else:
        colors = np.asarray(_converted(_in_srgb(path, image), "RGB"))
    return _stacked(colors, None if alpha is None else np.asarray(alpha))


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Returns an image of a mode, itself where it has that mode; Pillow's method would copy it."""
    return image if image.mode == mode else image.convert(mode)


def _from_sixteen_bits(path: pathlib.Path, image: Image.Image, tags: dict[int, Any], *, keep: bool) -> np.ndarray:
    bits = max(tags.get(_BITS_PER_SAMPLE, (16,)))
    if bits not in (12, 16) or set(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))) != {_UNSIGNED}:
        kind = "unsigned" if set(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))) == {_UNSIGNED} else "signed"
        raise ImageError(f"{path}: {kind} integers of {bits} bits, expected unsigned ones of 8, 12 or 16 bits")
    values = np.asarray(image).astype(np.int64)
    largest = 2**bits - 1
    if values.min() < 0 or values.max() > largest:
        raise ImageError(f"{path}: values {values.min()} to {values.max()}, expected 0 to {largest}")
    transparent = image.info.get("transparency")
    alpha = None if transparent is None else np.where(values == transparent, 0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = largest - values
    gray = ((values * 65535 + largest // 2) // largest).astype(np.uint16)
    levels = _gray_levels(path, image.info.get("icc_profile"), keep=keep)
    gray = gray if levels is None else levels[gray]
    if keep:
        return _stacked(gray, None if alpha is None else alpha * np.uint16(257))
    return _stacked(eight_bits(gray), alpha)


def _stacked(colors: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    colors = colors[..., None] if colors.ndim == 2 else colors
    return colors if alpha is None else np.concatenate([colors, alpha[..., None]], axis=-1)


def _in_srgb(path: pathlib.Path, image: Image.Image) -> Image.Image:
    """A colour image by its ICC profile in sRGB; the image itself where it has no profile, or one of sRGB."""
    embedded = image.info.get("icc_profile")
    transform = _transform_of(path, embedded, image.mode) if embedded and image.mode in _PROFILE_SPACES else None
    if transform is None:
        return image
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None, "only transforms in place give nothing"
    return converted


def _gray_levels(path: pathlib.Path, embedded: bytes | None, *, keep: bool = False) -> np.ndarray | None:
    """Converts each of 65,536 levels of gray to sRGB.

    Args:
        path: of the image, for warnings.
        embedded: its profile, None for none.
        keep: give 16 bits, for which imagecodecs must be installed; Pillow gives 8.

    Returns:
        (65536,) uint8 or uint16; None without a profile that says how.
    """
    if not embedded or (transform := _transform_of(path, embedded, "I;16")) is None:
        return None
    levels = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    if not keep:
        return np.asarray(ImageCms.applyTransform(Image.fromarray(levels), transform))[..., 1].ravel()
    import imagecodecs

    # By the same library as Pillow's, LittleCMS, as `_transform` asks for it there.
    converted = imagecodecs.cms_transform(
        levels,
        embedded,
        srgb_profile(),
        colorspace="gray",
        outcolorspace="rgb",
        outdtype="uint16",
        intent=imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
        flags=imagecodecs.CMS.FLAGS.BLACKPOINTCOMPENSATION | imagecodecs.CMS.FLAGS.NOOPTIMIZE,
    )
    return np.asarray(converted)[..., 1].ravel()


def _transform_of(path: pathlib.Path, embedded: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Returns the transform to sRGB; None, with a warning, for a profile that does not belong to the image."""
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(embedded)).profile.xcolor_space.strip()
        if space == _PROFILE_SPACES[mode]:
            return _transform(embedded, mode)
        problem = f"is of {space}, not of {_PROFILE_SPACES[mode]} as the image is"
    except (OSError, ImageCms.PyCMSError) as error:
        problem = f"is damaged ({error})"
    logging.warning("%s: its ICC profile %s; it is not applied", path, problem)
    return None


@functools.lru_cache(maxsize=16)
def _transform(embedded: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Returns the transform to sRGB; None where it changes colours no more than rounding does."""
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(embedded)),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        # Optimized transforms interpolate in tables, which miss the shadows of linear profiles by 10 of 255.
        ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOOPTIMIZE,
    )
    if mode != "RGB":
        return transform
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    converted = np.asarray(ImageCms.applyTransform(Image.fromarray(colors), transform))
    return None if np.abs(converted.astype(int) - colors).max() <= 1 else transform
