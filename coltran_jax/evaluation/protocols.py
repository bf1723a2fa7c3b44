"""Protocols by name: which images are colorized, and which images they are compared with."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Sequence

from PIL import Image

from coltran_jax.errors import ImageError, UsageError
from coltran_jax.images.files import find_images, images_by_name, read_rgb

# Two columns of numbers of ImageNet's validation images.
_LISTS = pathlib.Path(__file__).parent / "lists"
_IMAGENET_NAME = "ILSVRC2012_val_"
_IMAGENET_NUMBER = re.compile(_IMAGENET_NAME + "([0-9]{8})")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A protocol by which published numbers were made; numbers of two protocols are not comparable.

    Attributes:
        name: of the protocol.
        count: images colorized; 0 for all there are.
        imagenet: whether they are of ImageNet's validation set, whose files carry a number in any layout.
        numbers: file of the package with the numbers of the images to colorize and of those to compare with; "" for
            the first `count` images.
        others: whether they are compared with other images, not with their own true ones.
        stretch: whether whole images are squeezed to squares, not cut to their centre squares.
        listed: whether lists of names are part of it, which the user has.
        reduced_from: size of other colorizers' images, which are reduced to the size compared; 0 where they have it.
    """

    name: str
    count: int = 0
    imagenet: bool = False
    numbers: str = ""
    others: bool = False
    stretch: bool = False
    listed: bool = False
    reduced_from: int = 0

    @property
    def crop(self) -> str:
        """The way in which an image becomes a square, for reports."""
        return "squeezed to a square" if self.stretch else "centre square"

    @property
    def fixes_images(self) -> bool:
        """Says that exactly these images are meant, with the few that have no colours; published sets have some."""
        return self.count > 0 or self.others

    def columns(self) -> list[Sequence[int]]:
        """The numbers of ImageNet's validation images that are colorized and, where there are others, compared with."""
        if not self.numbers:
            return [range(1, self.count + 1)]
        lines = (_LISTS / self.numbers).read_text().splitlines()[1:]
        return list(zip(*(map(int, line.split("\t")) for line in lines), strict=True))

    def wanted_numbers(self) -> frozenset[int]:
        """All of these numbers; none for a protocol of other images."""
        return frozenset(number for column in self.columns() for number in column) if self.imagenet else frozenset()


_COLTRAN = Protocol("coltran-5k", 5000, imagenet=True, numbers="coltran_fid_5k.tsv", others=True)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("own"),
        Protocol("others", others=True, listed=True),
        _COLTRAN,
        dataclasses.replace(_COLTRAN, name="palette-5k", reduced_from=512),
        dataclasses.replace(_COLTRAN, name="uvim", reduced_from=512),
        Protocol("val5k", 5000, imagenet=True),
        Protocol("val5k-stretch", 5000, imagenet=True, stretch=True),
        Protocol("val50k", 50000, imagenet=True),
        Protocol("ctest10k", 10000, listed=True),
        Protocol("coco-val5k", 5000),
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
    """The images of a protocol among files and folders: those of its lists or of the user's, or the first by name.

    Images of ImageNet's validation set are known by the number in their file's name, whatever folders they are in.

    Args:
        protocol: to follow.
        paths: images and folders of them.
        chosen: file with names of the images to colorize, one a line.
        reference: the same of those to compare with.

    Raises:
        UsageError: lists that are missing, have another length or name images that are not there; too few images.
        ImageError: no such file or folder.
    """
    if (chosen or reference) and protocol.fixes_images and not protocol.listed:
        option = "--list" if chosen else "--reference_list"
        raise UsageError(
            f"{option}: the protocol {protocol.name} fixes its images; --protocol=own or others takes lists"
        )
    if reference and not protocol.others:
        raise UsageError(f"--reference_list: the protocol {protocol.name} compares images with their own true ones")
    wanted = {"--list": chosen, **({"--reference_list": reference} if protocol.others else {})}
    missing = [option for option, path in wanted.items() if protocol.listed and not path]
    if missing:
        count = f"{protocol.count:,} " if protocol.count else ""
        raise UsageError(f"the protocol {protocol.name} is made of lists: give {count}names with {missing[0]}")
    found = images_by_name(paths)
    names, others = (_listed(path, found, protocol.count) if path else None for path in (chosen, reference))
    if protocol.imagenet:
        names, others = _by_number(protocol, found)
    elif names is None:
        names = _first(protocol, found)
    if others is not None:
        both = sorted(set(names) & set(others))
        if both:
            raise UsageError(f"{both[0]} is in both lists; the protocol {protocol.name} compares with other images")
        if len(names) != len(others):
            raise UsageError(
                f"{len(names):,} images to colorize, {len(others):,} to compare with; the distance depends on the "
                "number: list as many in both"
            )
    return Selection(protocol, {name: found[name] for name in names}, others and {name: found[name] for name in others})


def _first(protocol: Protocol, found: dict[str, pathlib.Path]) -> list[str]:
    """Names of the first images by the names of their files, or of all in the order of their folders."""
    if not protocol.count:
        return list(found)
    if len(found) < protocol.count:
        raise UsageError(
            f"{len(found):,} images, the protocol {protocol.name} takes {protocol.count:,}; --protocol=own takes any"
        )
    return sorted(found, key=lambda name: (pathlib.PurePath(name).name, name))[: protocol.count]


def number_of(name: str) -> int | None:
    """Returns the number of an image of ImageNet's validation set by its file's name; None of any other file."""
    match = _IMAGENET_NUMBER.match(name)
    return int(match[1]) if match else None


def _by_number(protocol: Protocol, found: dict[str, pathlib.Path]) -> tuple[list[str], list[str] | None]:
    """Names of the images of ImageNet's validation set that a protocol colorizes, and compares with.

    Raises:
        UsageError: one is not there, or there twice.
    """
    by_number: dict[int, str] = {}
    for name, path in found.items():
        number = number_of(pathlib.PurePath(name).name)
        if number is not None and by_number.setdefault(number, name) != name:
            raise UsageError(f"{found[by_number[number]]} and {path}: the same image of ImageNet's validation set")
    columns = protocol.columns()
    wanted = [number for column in columns for number in column]
    missing = [number for number in wanted if number not in by_number]
    if missing:
        more = f", nor are {len(missing) - 1:,} others of {len(wanted):,}" if len(missing) > 1 else ""
        raise UsageError(
            f"{_IMAGENET_NAME}{missing[0]:08}, which the protocol {protocol.name} takes, is not among the "
            f"{len(found):,} images given{more}; --protocol=own takes any"
        )
    names, *others = ([by_number[number] for number in column] for column in columns)
    return names, others[0] if others else None


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


def check_sizes(paths: Sequence[pathlib.Path], size: tuple[int, ...]) -> None:
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
