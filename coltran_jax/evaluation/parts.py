"""Measures of parts of the images, on disk, so that an interrupted evaluation continues and hosts share the work."""

import json
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from coltran_jax.errors import UsageError
from coltran_jax.evaluation.measures import Record
from coltran_jax.files import check_writable, replacing


class Parts:
    """Records by number, in memory or in a folder."""

    def __init__(self, folder: pathlib.Path | None, settings: dict[str, Any], part_size: int):
        """Opens those of an earlier run with the same settings, if there are any.

        Args:
            folder: to keep them in, made if need be; None keeps them in memory.
            settings: what the records depend on.
            part_size: images of a part, where the folder has none yet: the attribute is what it was begun with.

        Raises:
            UsageError: the folder has parts of other settings, or cannot be written to.
        """
        self._folder = folder
        self._kept: dict[int, Record] = {}
        self.part_size = part_size
        if folder is None:
            return
        check_writable(folder)
        path = folder / "settings.json"
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(json.dumps({**settings, "part_size": part_size}, indent=1))
        try:
            found = dict(json.loads(path.read_text()))
        except (TypeError, ValueError):
            raise UsageError(f"{path}: damaged; remove {folder} to begin anew") from None
        self.part_size = found.get("part_size", part_size)
        differing = [key for key in settings if found.get(key) != json.loads(json.dumps(settings[key]))]
        if differing:
            key = differing[0]
            raise UsageError(
                f"{folder.parent} holds another evaluation ({key} {found.get(key)!r}, now {settings[key]!r}); "
                "give another --report, or remove it"
            )

    def numbers(self, num_images: int) -> range:
        """Returns the numbers of all parts of so many images."""
        return range(-(-num_images // self.part_size))

    def __contains__(self, number: int) -> bool:
        return number in self._kept or (self._folder is not None and self._path(number).exists())

    def put(self, number: int, record: Record) -> None:
        """Keeps a part, whole or not at all."""
        if self._folder is None:
            self._kept[number] = record
            return
        with replacing(self._path(number)) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{"/".join(key): value for key, value in record.items()})

    def get(self, number: int, only: Collection[str] = (), without: Collection[str] = ()) -> Record:
        """A part, all of its measures or only some, or all but some.

        Raises:
            UsageError: a damaged file.
        """

        def wanted(measure: str) -> bool:
            return measure in only if only else measure not in without

        if self._folder is None:
            return {key: value for key, value in self._kept[number].items() if wanted(key[1])}
        try:
            with np.load(self._path(number)) as file:
                keys = [tuple(name.rsplit("/", 1)) for name in file.files]
                return {key: file["/".join(key)] for key in keys if wanted(key[1])}
        except Exception:
            raise UsageError(f"{self._path(number)}: damaged; remove it, and run again") from None

    def _path(self, number: int) -> pathlib.Path:
        return self._folder / f"{number:06}.npz"


def merged(records: Sequence[Record]) -> Record:
    """Parts one after the other."""
    return {key: np.concatenate([record[key] for record in records]) for key in records[0]}
