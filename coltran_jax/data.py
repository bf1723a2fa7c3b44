"""Pictures for training and evaluation, through Grain (SPEC sections 2 and 7).

The host decodes, crops and area-resizes to uint8 squares; everything after happens on the device. The n-th global batch
depends on the seed and n alone: not on the number of hosts, nor on where a run was resumed.
"""

import collections
import dataclasses
import hashlib
import io
import logging
import pathlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags
from PIL import Image

from coltran_jax import images
from coltran_jax.decoding import read_picture
from coltran_jax.errors import DataError, PictureError
from coltran_jax.picture_files import find_pictures, to_rgb
from coltran_jax.training.config import DataConfig

SPLITS = ("train", "holdout", "test")

# The last of ImageNet's training pictures are the holdout; its public validation set is the test set.
_IMAGENET_HOLDOUT = 10_000

_EXAMPLES = 2**40


class FolderSource:
    """A folder of pictures, of any depth; which are held out is decided by a hash of their names.

    Random access, as Grain asks for: `len` and `[i]`, an RGB picture (H, W, 3) uint8.
    """

    def __init__(self, folder: str, split: str, holdout_fraction: float, group_pattern: str = "", balance: float = 0):
        """Lists the folder.

        Args:
            folder: of pictures.
            split: "train", or any other for the pictures held out.
            holdout_fraction: see `DataConfig`, for this and the next two.
            group_pattern: of groups.
            balance: of groups, in the training split.

        Raises:
            DataError: no such folder, or no pictures of the split in it.
        """
        root = pathlib.Path(folder)
        if not folder or not root.is_dir():
            raise DataError(f"data.path is {folder!r}: no such folder; give the folder of pictures")
        try:
            found = find_pictures([root]).pictures
        except PictureError as error:
            raise DataError(str(error)) from None
        names = sorted(path.relative_to(root).as_posix() for path, _ in found)
        held_out = split != "train"
        self._root = root
        self._names = [name for name in names if is_held_out(name, holdout_fraction) == held_out]
        if not self._names:
            raise DataError(
                f"{folder}: none of its {len(names)} pictures is in the {split} split (holdout_fraction "
                f"{holdout_fraction}); give more pictures or another fraction"
            )

        if not held_out and balance:
            self._names = balanced(self._names, group_pattern, balance)

    def __len__(self) -> int:
        """Number of pictures, each as often as an epoch has it."""
        return len(self._names)

    def __getitem__(self, index: int) -> np.ndarray:
        """A picture, RGB.

        Raises:
            PictureError: it cannot be read.
        """
        return to_rgb(read_picture(self._root / self._names[index]))

    def name(self, index: int) -> str:
        """The file's path within the folder."""
        return self._names[index]


def balanced(names: list[str], group_pattern: str, balance: float) -> list[str]:
    """Repeats the names of small groups; see `DataConfig.balance`. Names without a match are one group."""
    matches = [re.search(group_pattern, name) for name in names]
    groups = [match.group() if match else None for match in matches]
    sizes = collections.Counter(groups)
    largest = max(sizes.values())
    times = {group: round((largest / size) ** balance) for group, size in sizes.items()}
    return [name for name, group in zip(names, groups, strict=True) for _ in range(times[group])]


def is_held_out(name: str, fraction: float) -> bool:
    """Whether a picture belongs to the holdout, by a hash of its name: stable whatever else is in the folder."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


class ImageNetSource:
    """ImageNet 2012 as TensorFlow Datasets prepared it, in ArrayRecord files; random access as `FolderSource`."""

    def __init__(self, data_dir: str, split: str, holdout: int = _IMAGENET_HOLDOUT):
        """Opens the data.

        Raises:
            DataError: not prepared.
        """
        import tensorflow_datasets as tfds

        where = data_dir or None
        train = f"train[:-{holdout}]"
        wanted = {"train": train, "holdout": f"train[-{holdout}:]", "test": "validation"}[split]
        try:
            self._source = tfds.data_source(
                "imagenet2012",
                split=wanted,
                data_dir=where,
                download=False,
                decoders={"image": tfds.decode.SkipDecoding()},
            )
        except Exception as error:
            raise DataError(
                f"imagenet2012 {wanted} is not prepared as array_record in {data_dir or 'the default data folder'} "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); docs/data.md says how"
            ) from None
        if not len(self._source):
            raise DataError(f"imagenet2012 {wanted} has no pictures; expected more than {holdout} in train")

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._source)

    def __getitem__(self, index: int) -> np.ndarray:
        """A picture, RGB.

        Raises:
            PictureError: it cannot be decoded.
        """
        record = self._source[index]
        encoded = record["image"]
        try:
            image = Image.open(io.BytesIO(bytes(encoded)))
            return np.asarray(image.convert("RGB"))
        except Exception as error:
            raise PictureError(f"{_text(record['file_name'])}: {' '.join(str(error).split())}") from None

    def name(self, index: int) -> str:
        """The file's name in the archives."""
        return _text(self._source[index]["file_name"])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def open_source(config: DataConfig, split: str) -> FolderSource | ImageNetSource:
    """The pictures of a split.

    Raises:
        DataError: there are none.
    """
    if config.dataset == "folder":
        return FolderSource(config.path, split, config.holdout_fraction, config.group_pattern, config.balance)
    return ImageNetSource(config.path, split)


@dataclasses.dataclass(frozen=True)
class _ReadSquare(grain.transforms.RandomMap):
    """Index -> {"pictures": (size, size, 3) uint8, "mask": 1, or 0 and black where it could not be read}."""

    source: FolderSource | ImageNetSource
    size: int
    random: bool
    config: DataConfig

    def random_map(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                picture = self.source[int(index)]
        except PictureError as error:
            if self.config.on_error == "raise":
                raise DataError(f'{error}; remove it, or set data.on_error = "skip"') from None
            _warn_once(str(error))
            return {"pictures": np.zeros((self.size, self.size, 3), np.uint8), "mask": np.float32(0)}
        square = random_square(picture, rng, self.config) if self.random else images.center_square(picture)
        return {"pictures": images.area_resize(square, self.size, self.size), "mask": np.float32(1)}


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        logging.warning("skipped: %s", message)


def random_square(picture: np.ndarray, rng: np.random.Generator, config: DataConfig) -> np.ndarray:
    """A random square, of the short side's length or of part of it, mirrored or not: (H, W, 3) -> (L, L, 3)."""
    height, width = picture.shape[:2]
    side = min(height, width)
    if config.min_scale < 1:
        side = max(1, round(side * rng.uniform(config.min_scale, 1)))
    top, left = rng.integers(0, height - side, endpoint=True), rng.integers(0, width - side, endpoint=True)
    square = picture[top : top + side, left : left + side]
    return square[:, ::-1] if config.flip and rng.random() < 0.5 else square


def training_batches(
    config: DataConfig,
    source: FolderSource | ImageNetSource,
    *,
    size: int,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    part: int = 0,
    num_parts: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """One part of every global batch, from step `first_step` on, without end; every epoch in another order.

    Args:
        config: of the data.
        source: the pictures.
        size: side of the squares.
        batch_size: of the global batch.
        seed: of order and crops.
        first_step: number of the first global batch to give.
        part: which of `num_parts` equal parts of each batch, in order.
        num_parts: of a batch.

    Yields:
        {"pictures": (B / num_parts, size, size, 3) uint8, "mask": (B / num_parts,) float32}.
    """
    read = _ReadSquare(source, size, random=True, config=config)
    # Without end for any purpose, and yet of a length that Python can count.
    epochs = max(1, _EXAMPLES // len(source))
    data = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(epochs).random_map(read)
    data = data.batch(batch_size // num_parts)[first_step * num_parts + part :: num_parts]
    iterable = data.to_iter_dataset(_read_options(config, config.prefetch))
    if config.num_workers:
        # Grain reads flags of its own, which absl keeps closed until someone parses a command line.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(config.num_workers, config.prefetch))
    return iter(iterable)


def _read_options(config: DataConfig, ahead: int) -> grain.ReadOptions:
    threads = config.num_threads
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads) if threads else 0)


def evaluation_batches(
    config: DataConfig,
    source: FolderSource | ImageNetSource,
    *,
    size: int,
    batch_size: int,
    num_examples: int = 0,
    part: int = 0,
    num_parts: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """One part of every batch of the centre squares, in order, each picture once; the last is filled up, mask 0.

    Args and yields as `training_batches`; `num_examples` is how many of the first pictures, 0 for all.
    """
    total = min(num_examples or len(source), len(source))
    read = _ReadSquare(source, size, random=False, config=config)
    data = grain.MapDataset.range(total).seed(0).random_map(read)
    options = _read_options(config, batch_size)
    each = batch_size // num_parts
    wanted = [i for start in range(0, total, batch_size) for i in range(start + part * each, start + (part + 1) * each)]
    present = [i for i in wanted if i < total]
    chosen = grain.MapDataset.source(present).map(data.__getitem__) if present else None
    rows = iter(chosen.to_iter_dataset(options)) if chosen is not None else iter(())
    empty = {"pictures": np.zeros((size, size, 3), np.uint8), "mask": np.float32(0)}
    for start in range(0, len(wanted), each):
        batch = [next(rows) if i < total else empty for i in wanted[start : start + each]]
        yield {key: np.stack([row[key] for row in batch]) for key in empty}
