"""Images for training and evaluation, through Grain.

The host decodes, crops and area-resizes to uint8 squares; everything after happens on the device. The n-th global batch
depends on the seed and n alone: not on the number of hosts, nor on where a run was resumed.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from coltran_jax.data.config import DataConfig
from coltran_jax.data.sources import Source
from coltran_jax.errors import DataError, ImageError
from coltran_jax.images import arrays

_EXAMPLES = 2**40


@dataclasses.dataclass(frozen=True)
class _ReadSquare(grain.transforms.RandomMap):
    """Index -> {"images": (size, size, 3) uint8, "mask": 1, or 0 and black where it could not be read}."""

    source: Source
    size: int
    random: bool
    config: DataConfig

    def random_map(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        try:
            image = self.source[int(index)]
        except ImageError as error:
            if self.config.on_error == "raise":
                raise DataError(f'{error}; remove it, or set data.on_error = "skip"') from None
            _warn_once(str(error))
            return {"images": np.zeros((self.size, self.size, 3), np.uint8), "mask": np.float32(0)}
        square = random_square(image, rng, self.config) if self.random else arrays.center_square(image)
        resized = arrays.area_resize(square, self.size, self.size)
        if self.random and self.config.jitter:
            resized = jittered(resized, rng, self.config.jitter)
        return {"images": resized, "mask": np.float32(1)}


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        logging.warning("skipped: %s", message)


def random_square(image: np.ndarray, rng: np.random.Generator, config: DataConfig) -> np.ndarray:
    """A random square, of the short side's length or of part of it, mirrored or not: (H, W, 3) -> (L, L, 3)."""
    height, width = image.shape[:2]
    side = min(height, width)
    if config.min_scale < 1:
        side = max(1, round(side * rng.uniform(config.min_scale, 1)))
    top, left = rng.integers(0, height - side, endpoint=True), rng.integers(0, width - side, endpoint=True)
    square = image[top : top + side, left : left + side]
    return square[:, ::-1] if config.flip and rng.random() < 0.5 else square


def jittered(image: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Changes brightness and contrast, each by a random factor in [1 - amount, 1 + amount]; uint8, of any shape."""
    brightness, contrast = rng.uniform(1 - amount, 1 + amount, size=2)
    mean = image.mean()
    changed = (image.astype(np.float32) - mean) * contrast + mean * brightness
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def training_batches(
    config: DataConfig,
    source: Source,
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
        source: the images.
        size: side of the squares.
        batch_size: of the global batch.
        seed: of order and crops.
        first_step: number of the first global batch to give.
        part: which of `num_parts` equal parts of each batch, in order.
        num_parts: of a batch.

    Yields:
        {"images": (B / num_parts, size, size, 3) uint8, "mask": (B / num_parts,) float32}.
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
    return _owned(iter(iterable))


def _owned(batches: grain.DatasetIterator) -> Iterator[dict[str, np.ndarray]]:
    """Copies batches out of the memory that worker processes share, which is then given back at once.

    Otherwise the last batch would keep its part of it until Python ends, which would be reported as a leak.
    """
    with contextlib.closing(batches):
        for batch in batches:
            copied = {key: np.array(value) for key, value in batch.items()}
            del batch
            yield copied


def _read_options(config: DataConfig, ahead: int) -> grain.ReadOptions:
    threads = config.num_threads
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads) if threads else 0)


def evaluation_batches(
    config: DataConfig,
    source: Source,
    *,
    size: int,
    batch_size: int,
    num_examples: int = 0,
    part: int = 0,
    num_parts: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """One part of every batch of the centre squares, in order, each image once; the last is filled up, mask 0.

    Args and yields as `training_batches`; `num_examples` is how many of the first images, 0 for all.
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
    empty = {"images": np.zeros((size, size, 3), np.uint8), "mask": np.float32(0)}
    for start in range(0, len(wanted), each):
        batch = [next(rows) if i < total else empty for i in wanted[start : start + each]]
        yield {key: np.stack([row[key] for row in batch]) for key in empty}
