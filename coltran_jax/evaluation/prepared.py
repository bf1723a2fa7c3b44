"""ImageNet's validation images inside the files of TensorFlow Datasets, written out for an evaluation."""

import contextlib
import pathlib
import tempfile
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from coltran_jax.errors import UsageError, one_line
from coltran_jax.evaluation.protocols import Protocol, number_of

_INFO = "dataset_info.json"
_DATASET, _SPLIT = "imagenet2012", "validation"


@contextlib.contextmanager
def as_files(paths: Sequence[pathlib.Path], protocol: Protocol) -> Iterator[list[pathlib.Path]]:
    """Replaces folders that TensorFlow Datasets prepared by folders of image files, which last as long as the context.

    The files have the very bytes that the dataset has. Of a protocol with fixed numbers, its images alone are written.

    Args:
        paths: images, folders of them, and prepared folders: a version's own, with `dataset_info.json`, or the data
            folder with `imagenet2012` in it.
        protocol: that will choose among them.

    Raises:
        UsageError: a prepared folder without validation images.
    """
    with contextlib.ExitStack() as stack:
        found = []
        for path in paths:
            prepared = _prepared(path)
            if prepared is not None:
                path = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coltran_jax-imagenet-")))
                _write(prepared, path, protocol.wanted_numbers())
            found.append(path)
        yield found


def _prepared(path: pathlib.Path) -> pathlib.Path | None:
    """The folder of the newest version that was prepared there; None where there is none."""
    if (path / _INFO).is_file():
        return path
    versions = sorted(path.glob(f"{_DATASET}/*/{_INFO}"))
    return versions[-1].parent if versions else None


def _write(prepared: pathlib.Path, folder: pathlib.Path, numbers: Collection[int]) -> None:
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(str(prepared))
    except Exception as error:
        raise UsageError(f"{prepared}: cannot be read by TensorFlow Datasets ({one_line(error)})") from None
    if _SPLIT not in builder.info.splits or not {"file_name", "image"} <= set(builder.info.features or ()):
        raise UsageError(f"{prepared}: no split {_SPLIT} of images with file names; expected {_DATASET}")
    for name, encoded in _examples(builder):
        if not numbers or number_of(name) in numbers:
            (folder / name).write_bytes(encoded)


def _examples(builder: Any) -> Iterator[tuple[str, bytes]]:
    """Yields names and encoded images, in the order of the files."""
    import tensorflow_datasets as tfds

    options = {"split": _SPLIT, "decoders": {"image": tfds.decode.SkipDecoding()}}
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        examples = builder.as_data_source(**options)
    else:
        examples = tfds.as_numpy(builder.as_dataset(**options, shuffle_files=False))
    for example in examples:
        name = example["file_name"]
        yield name.decode() if isinstance(name, bytes) else str(name), bytes(example["image"])
