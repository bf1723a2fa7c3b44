"""The configuration of the data."""

import dataclasses
import re

from coltran_jax.config import added, check, check_at_least, check_choice
from coltran_jax.data.sources import DATASETS
from coltran_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Says where images come from and how they are read.

    Attributes:
        dataset: one of `coltran_jax.data.sources.DATASETS`: "imagenet", prepared by TensorFlow Datasets, or "folder",
            of images of any kind.
        path: the folder of images, or the data folder of TensorFlow Datasets ("" for its default).
        holdout_fraction: of a folder's images, by a hash of their names.
        group_pattern: regular expression whose first match in a file's path, within the folder, names the image's
            group; "" for no groups.
        balance: how far an epoch evens groups out: each image of a group comes (size of the largest group / size of
            its own) to this power times, rounded. 0 for once, 1 for groups of about one size.
        min_scale: training crops have at least this part of the short side; 1 for the largest square.
        flip: mirror half of the training images.
        jitter: largest relative change of the brightness and of the contrast of training images; 0 for none. All
            channels change alike, so that hues stay.
        on_error: "raise" on an image that cannot be read, or "skip" it.
        num_workers: processes a host; 0 to read in the training process.
        num_threads: a process.
        prefetch: batches ready ahead.
    """

    dataset: str = "imagenet"
    path: str = ""
    holdout_fraction: float = 0.1
    group_pattern: str = ""
    balance: float = 0.0
    min_scale: float = 1.0
    flip: bool = False
    jitter: float = added(0.0)
    on_error: str = "raise"
    num_workers: int = 0
    num_threads: int = 8
    prefetch: int = 4

    def __post_init__(self):
        check_choice(self, "dataset", tuple(DATASETS))
        check_choice(self, "on_error", ("raise", "skip"))
        check_at_least(self, 0, "num_workers", "num_threads")
        check_at_least(self, 1, "prefetch")
        check(0 <= self.balance <= 1, "balance", self.balance, "a number in [0, 1]")
        try:
            re.compile(self.group_pattern)
        except re.error as error:
            raise ConfigError(
                f"group_pattern is {self.group_pattern!r}, expected a regular expression ({error})"
            ) from None
        check(0 < self.holdout_fraction < 1, "holdout_fraction", self.holdout_fraction, "a number between 0 and 1")
        check(0 <= self.jitter < 1, "jitter", self.jitter, "a number in [0, 1)")
        check(0 < self.min_scale <= 1, "min_scale", self.min_scale, "a number in (0, 1]")
