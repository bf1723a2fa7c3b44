"""Results of other colorizers, paired with true images by name."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

from coltran_jax.errors import StudyError
from coltran_jax.files import why_no_folder
from coltran_jax.images.files import images_by_name


@dataclasses.dataclass(frozen=True)
class Source:
    """Colorizations to judge.

    Attributes:
        model: name in tables.
        folder: with NAME.png, or NAME-1.png, NAME-2.png ... of several seeds, as `colorize` writes them.
    """

    model: str
    folder: pathlib.Path

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Parses "MODEL=DIR" or "DIR"."""
        model, found, folder = text.partition("=")
        return cls(model, pathlib.Path(folder)) if found else cls("colorized", pathlib.Path(text))


# Image -> model -> seed ("1", "2" ..., or "" where there is one) -> file.
Fakes = Mapping[str, Mapping[str, Mapping[str, pathlib.Path]]]


def fakes_of(real: Mapping[str, pathlib.Path], sources: Sequence[Source]) -> Fakes:
    """Colorizations of real images, by name; folders may have others beside them.

    Raises:
        StudyError: two of one name; an image that lacks a colorization, or one of the seeds that others have.
    """
    fakes: dict[str, dict[str, dict[str, pathlib.Path]]] = {name: {} for name in real}
    models = [source.model for source in sources]
    for source in sources:
        if models.count(source.model) > 1:
            raise StudyError(f"two colorizations are called {source.model!r}; give each a name, MODEL={source.folder}")
        found: dict[str, dict[str, pathlib.Path]] = {name: {} for name in real}
        for name, path in by_name(source.folder).items():
            numbered = re.fullmatch(r"(.*)-([0-9]+)", name)
            if name in real:
                found[name][""] = path
            elif numbered and numbered[1] in real:
                found[numbered[1]][numbered[2]] = path
        seeds = {seed for own in found.values() for seed in own}
        for name, own in found.items():
            missing = sorted(seeds - own.keys()) if own else [""]
            if missing:
                wanted = f"{name}-{missing[0]}" if missing[0] else name
                raise StudyError(f"{source.folder}: no {wanted}.png, a colorization of {real[name]}")
            fakes[name][source.model] = own
    return fakes


def by_name(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Images of a folder by name; see `images_by_name`.

    Raises:
        StudyError: no such folder.
    """
    if not folder.is_dir():
        raise StudyError(f"{folder}: {why_no_folder(folder)}")
    return images_by_name([folder])
