"""Images of a folder."""

import collections
import hashlib
import pathlib
import re
from typing import TYPE_CHECKING

import numpy as np

from coltran_jax.errors import DataError, ImageError
from coltran_jax.files import why_no_folder
from coltran_jax.images.decoding import read_image
from coltran_jax.images.files import find_images, to_rgb

if TYPE_CHECKING:
    from coltran_jax.data.config import DataConfig


def open_split(config: "DataConfig", split: str) -> "FolderSource":
    """Opens a split of the dataset "folder"."""
    return FolderSource(config.path, split, config.holdout_fraction, config.group_pattern, config.balance)


class FolderSource:
    """A folder of images, of any depth; which are held out is decided by a hash of their names."""

    def __init__(self, folder: str, split: str, holdout_fraction: float, group_pattern: str = "", balance: float = 0):
        """Lists the folder.

        Args:
            folder: of images.
            split: "train", or any other for the images held out.
            holdout_fraction: see `DataConfig`, for this and the next two.
            group_pattern: of groups.
            balance: of groups, in the training split.

        Raises:
            DataError: no such folder, or no images of the split in it.
        """
        root = pathlib.Path(folder)
        if not folder or not root.is_dir():
            problem = why_no_folder(root) if folder else "no such folder"
            raise DataError(f"data.path is {folder!r}: {problem}; give the folder of images")
        try:
            found = find_images([root]).images
        except ImageError as error:
            raise DataError(str(error)) from None
        names = sorted(path.relative_to(root).as_posix() for path, _ in found)
        held_out = split != "train"
        self._root = root
        self._names = [name for name in names if is_held_out(name, holdout_fraction) == held_out]
        if not self._names:
            raise DataError(
                f"{folder}: none of its {len(names)} images is in the {split} split (holdout_fraction "
                f"{holdout_fraction}); give more images or another fraction"
            )

        if not held_out and balance:
            self._names = balanced(self._names, group_pattern, balance)

    def __len__(self) -> int:
        """Number of images, each as often as an epoch has it."""
        return len(self._names)

    def __getitem__(self, index: int) -> np.ndarray:
        """An image, RGB.

        Raises:
            ImageError: it cannot be read.
        """
        return to_rgb(read_image(self._root / self._names[index]))

    def name(self, index: int) -> str:
        """The file's path within the folder."""
        return self._names[index]


def group_of(name: str, group_pattern: str) -> str | None:
    """Returns the group of an image, the first match in its name; None without one."""
    match = re.search(group_pattern, name)
    return match.group() if match else None


def balanced(names: list[str], group_pattern: str, balance: float) -> list[str]:
    """Repeats the names of small groups; see `DataConfig.balance`. Names without a match are one group."""
    groups = [group_of(name, group_pattern) for name in names]
    sizes = collections.Counter(groups)
    largest = max(sizes.values())
    times = {group: round((largest / size) ** balance) for group, size in sizes.items()}
    return [name for name, group in zip(names, groups, strict=True) for _ in range(times[group])]


def is_held_out(name: str, fraction: float) -> bool:
    """Returns whether an image is held out, by a hash of its name, whatever else is in the folder."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
