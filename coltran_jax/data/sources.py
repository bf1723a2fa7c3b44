"""Datasets by name. A dataset is a function that opens its splits, in a file of its own, and an entry here."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from coltran_jax.data import folder, imagenet

if TYPE_CHECKING:
    from coltran_jax.data.config import DataConfig

SPLITS = ("train", "holdout", "test")


class Source(Protocol):
    """Random access to the images of a split, as Grain asks for it."""

    def __len__(self) -> int:
        """Returns the number of images in an epoch."""

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns an image, RGB (H, W, 3) uint8.

        Raises:
            ImageError: it cannot be read. Training then stops or skips it, as `DataConfig.on_error` says.
        """

    def name(self, index: int) -> str:
        """Returns the name of an image for messages and reports."""


# Name in configurations -> what opens one of `SPLITS`. It raises DataError if there is no such data.
DATASETS: dict[str, Callable[["DataConfig", str], Source]] = {
    "imagenet": imagenet.open_split,
    "folder": folder.open_split,
}


def open_source(config: "DataConfig", split: str) -> Source:
    """Opens the images of a split.

    Raises:
        DataError: there are none.
    """
    return DATASETS[config.dataset](config, split)
