"""Protocols by name: which images are colorized, and which images they are compared with."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence

from PIL import Image

from coltran_jax.errors import ImageError, UsageError
from coltran_jax.images.files import find_images, images_by_name, read_rgb


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A protocol by which published numbers were made; numbers of two protocols are not comparable.

    Attributes:
        name: of the protocol.
        count: images colorized; 0 for all there are.
        others: whether they are compared with as many other images, not with their own true ones.
        stretch: whether whole images are squeezed to squares, not cut to their centre squares.
        listed: whether a list of names is part of it.
    """

    name: str
    count: int = 0
    others: bool = False
    stretch: bool = False
    listed: bool = False

    @property
    def crop(self) -> str:
        """The way in which an image becomes a square, for reports."""
        return "squeezed to a square" if self.stretch else "centre square"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("own"),
        Protocol("coltran-5k", count=5000, others=True),
        Protocol("val5k", count=5000),
        Protocol("val5k-stretch", count=5000, stretch=True),
        Protocol("ctest10k", count=10000, listed=True),
    )
}


@dataclasses.dataclass(frozen=True)
class Selection:
    """Images of a protocol.

    Attributes:
        protocol: that chose them.
        images: to colorize, by name.
        reference: to compare with; None where these are the same.
    """

    protocol: Protocol
    images: dict[str, pathlib.Path]
    reference: dict[str, pathlib.Path] | None

    @property
    def digest(self) -> str:
        """A digest of all names, in order."""
        names = "\n".join([*self.images, "", *(self.reference or ())])
        return hashlib.sha256(names.encode()).hexdigest()[:16]


def select(
    protocol: Protocol,
    paths: Sequence[pathlib.Path],
    chosen: pathlib.Path | None = None,
    reference: pathlib.Path | None = None,
) -> Selection:
    """The images of a protocol among files and folders: those of a list, or the first by name.

    Args:
        protocol: to follow.
        paths: images and folders of them.
        chosen: file with names of the images to colorize, one a line.
        reference: the same of those to compare with.

    Raises:
        UsageError: lists that are missing, have another length or name images that are not there; too few images.
        ImageError: no such file or folder.
    """
    found = images_by_name(paths)
    if protocol.listed and not chosen:
        raise UsageError(f"the protocol {protocol.name} is a list of {protocol.count:,} names; give it with --list")
    if reference and not protocol.others:
        raise UsageError(f"--reference_list: the protocol {protocol.name} compares images with their own true ones")
    names = _listed(chosen, found, protocol.count) if chosen else None
    others = _listed(reference, found, protocol.count) if reference else None
    if names is None:
        free = [name for name in found if name not in set(others or ())]
        names = free[: protocol.count or None]
        _check_count(protocol, names, len(found))
    if protocol.others and others is None:
        taken = set(names)
        others = [name for name in found if name not in taken][: protocol.count]
        _check_count(protocol, others, len(found))
    both = sorted(set(names) & set(others or ()))
    if both:
        raise UsageError(f"{both[0]} is in both lists; the protocol {protocol.name} compares with other images")
    return Selection(protocol, {name: found[name] for name in names}, others and {name: found[name] for name in others})


def _check_count(protocol: Protocol, names: Sequence[str], there: int) -> None:
    if len(names) < protocol.count:
        needed = protocol.count * (2 if protocol.others else 1)
        raise UsageError(f"{there:,} images, the protocol {protocol.name} takes {needed:,}; --protocol=own takes any")


def _listed(path: pathlib.Path, found: dict[str, pathlib.Path], count: int) -> list[str]:
    """Names of a list, each a key of `found`: a path within the folder or a bare file name, suffix or not."""
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: a list that cannot be read ({getattr(error, 'strerror', None) or 'no text'})"
        ) from None
    by_file_name: dict[str, str | None] = {}
    for name, file in found.items():
        for key in (pathlib.PurePath(name).name, file.name):
            by_file_name[key] = name if by_file_name.get(key, name) == name else None
    names: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        wanted = line.strip()
        if not wanted:
            continue
        # The name may carry its suffix, and an image's own name may have a dot.
        candidates = (wanted, pathlib.PurePath(wanted).with_suffix("").as_posix())
        name = next((key for key in candidates if key in found), None) or by_file_name.get(wanted)
        if name is None:
            raise UsageError(f"{path}: line {number}: no image {wanted!r} among the {len(found):,} given")
        if name in names:
            raise UsageError(f"{path}: lines {names[name]} and {number} name the same image, {wanted!r}")
        names[name] = number
    if not names or (count and len(names) != count):
        raise UsageError(f"{path}: {len(names):,} names, expected {f'{count:,}' if count else 'at least one'}")
    return list(names)


def without_gray(selection: Selection) -> tuple[Selection, list[str]]:
    """Leaves out images without colours: those of a gray file format, and those whose pixels are all gray.

    Returns:
        The selection of the other images, and the names of those left out.

    Raises:
        ImageError: an image that cannot be read.
        UsageError: none has colours.
    """
    gray = []
    for name, path in selection.images.items():
        rgb = read_rgb(path)
        if (rgb == rgb[..., :1]).all():
            gray.append(name)
    images = {name: path for name, path in selection.images.items() if name not in set(gray)}
    if not images:
        raise UsageError(f"none of the {len(gray)} images has colours to compare with")
    return dataclasses.replace(selection, images=images), gray


def check_readable(paths: Sequence[pathlib.Path], colors: bool) -> None:
    """Looks into every image's header, before anything slow starts.

    Args:
        paths: of images.
        colors: whether gray images are refused. Published sets have a few, which count as they are.

    Raises:
        ImageError: naming the first that is not an image, or has no colours.
    """
    for path in paths:
        try:
            with Image.open(path) as image:
                mode = image.mode
        except Exception:
            raise ImageError(f"{path}: not an image, or a damaged one") from None
        if colors and (mode in ("1", "L", "LA", "La", "F") or mode.startswith("I")):
            raise ImageError(
                f"{path}: a gray image, which has no colours to compare with; --skip_gray leaves such images out"
            )


def check_sizes(paths: Sequence[pathlib.Path], size: tuple[int, int]) -> None:
    """Looks into headers for images that are not of size (height, width).

    Raises:
        UsageError: naming the first.
        ImageError: not an image.
    """
    check_readable(paths, colors=False)
    for path in paths:
        with Image.open(path) as image:
            if image.size[::-1] != size:
                raise UsageError(
                    f"{path} is {image.height}x{image.width}, expected {size[0]}x{size[1]}, the size at which "
                    "images are compared (colorize --square)"
                )


def pair_of_folders(one: pathlib.Path, other: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """The images of two folders whose distance is asked for: as many in each, all of one size.

    Raises:
        UsageError: of different counts or sizes.
        ImageError: no such folder, no image in it, or one that is damaged.
    """
    sides = [[path for path, _ in find_images([folder]).images] for folder in (one, other)]
    if len(sides[0]) != len(sides[1]):
        raise UsageError(
            f"{one} has {len(sides[0]):,} images, {other} {len(sides[1]):,}; the distance depends on the number: "
            "give as many in both"
        )
    first = None
    for path in sides[0] + sides[1]:
        check_readable([path], colors=False)
        with Image.open(path) as image:
            size = image.size
        first = first or (path, size)
        if size != first[1]:
            raise UsageError(
                f"{path} is {size[0]}x{size[1]}, {first[0]} {first[1][0]}x{first[1][1]}; expected one size: resize "
                "them, or give the true images with --images and the others with --colorized"
            )
    return sides[0], sides[1]
