"""ImageNet, as TensorFlow Datasets prepares it."""

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from coltran_jax.errors import DataError, ImageError, one_line

if TYPE_CHECKING:
    from coltran_jax.data.config import DataConfig

# The last of ImageNet's training images are the holdout; its public validation set is the test set.
_HOLDOUT = 10_000


def open_split(config: "DataConfig", split: str) -> "ImageNetSource":
    """Opens a split of the dataset "imagenet"."""
    return ImageNetSource(config.path, split)


class ImageNetSource:
    """ImageNet 2012 as TensorFlow Datasets prepared it, in ArrayRecord files; see `coltran_jax.data.sources.Source`."""

    def __init__(self, data_dir: str, split: str, holdout: int = _HOLDOUT):
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
            raise DataError(f"imagenet2012 {wanted} has no images; expected more than {holdout} in train")

    def __len__(self) -> int:
        """Number of images."""
        return len(self._source)

    def __getitem__(self, index: int) -> np.ndarray:
        """An image, RGB.

        Raises:
            ImageError: it cannot be decoded.
        """
        record = self._source[index]
        encoded = record["image"]
        try:
            image = Image.open(io.BytesIO(bytes(encoded)))
            return np.asarray(image.convert("RGB"))
        except Exception as error:
            raise ImageError(f"{_text(record['file_name'])}: {one_line(error)}") from None

    def name(self, index: int) -> str:
        """The file's name in the archives."""
        return _text(self._source[index]["file_name"])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
