"""Metadata of image files: EXIF, XMP, resolution and text."""

import dataclasses
import logging
import pathlib

from PIL import ExifTags, Image

from coltran_jax.errors import one_line

# Tags of a TIFF's main folder that tell of the image. All others say how the file's pixels are stored.
_DESCRIPTIVE = frozenset(
    {
        ExifTags.Base.ImageDescription,
        ExifTags.Base.Make,
        ExifTags.Base.Model,
        ExifTags.Base.Software,
        ExifTags.Base.DateTime,
        ExifTags.Base.Artist,
        ExifTags.Base.Copyright,
    }
)
_TIFF_XMP = 700
_PNG_XMP = "XML:com.adobe.xmp"


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Metadata of an image file, as far as a result takes it over.

    Attributes:
        exif: a block of EXIF, without orientation and thumbnail; empty for none.
        xmp: a packet of XMP; empty for none.
        dpi: pixels per inch, across and down; None where the file does not say.
        text: text chunks of a PNG, by keyword.
        comment: of a JPEG.
    """

    exif: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = dataclasses.field(default_factory=dict)
    comment: bytes = b""


NONE = Metadata()


def metadata_of(path: pathlib.Path, image: Image.Image, upright: Image.Image) -> Metadata:
    """Returns the metadata of an image.

    Args:
        path: of the file, for a warning where its metadata cannot be read; the image is taken without it then.
        image: as opened and loaded.
        upright: what Pillow's `exif_transpose` makes of it, which removes the orientation from XMP.
    """
    try:
        text = getattr(image, "text", {})
        xmp = upright.info.get("xmp") or getattr(image, "tag_v2", {}).get(_TIFF_XMP) or text.get(_PNG_XMP) or b""
        dpi, comment = image.info.get("dpi"), image.info.get("comment")
        return Metadata(
            _exif(image),
            xmp.encode() if isinstance(xmp, str) else bytes(xmp),
            None if dpi is None or not min(dpi) > 0 else (float(dpi[0]), float(dpi[1])),
            {key: str(value) for key, value in text.items() if key != _PNG_XMP},
            comment if isinstance(comment, bytes) else b"",
        )
    # Whatever a damaged block makes Pillow raise.
    except Exception as error:
        logging.warning("%s: its metadata cannot be read and is left out (%s)", path, one_line(error))
        return NONE


def _exif(image: Image.Image) -> bytes:
    exif, written = image.getexif(), Image.Exif()
    for tag, value in exif.items():
        if tag in _DESCRIPTIVE:
            written[tag] = value
    for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        part = dict(exif.get_ifd(tag))
        if part:
            written[tag] = part
    return written.tobytes() if len(written) else b""
