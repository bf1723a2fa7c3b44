"""The human test: a page that shows a real and a colorized image for a second and asks which is the fake."""

import base64
import contextlib
import dataclasses
import hashlib
import importlib.resources
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from coltran_jax.errors import StudyError
from coltran_jax.evaluation import colorized
from coltran_jax.human_study.scoring import MIN_CHECKS
from coltran_jax.images import arrays
from coltran_jax.images.decoding import read_image
from coltran_jax.images.encoding import write_image

# What stands in the page's template for the study's description.
_PLACE = "/* STUDY */ null"
# Of the names of images, which must not tell which is real.
_NAME_LENGTH = 16


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a study.

    Attributes:
        seed: of what is chosen for practice and checks, and, with the rater's name, of order and sides.
        seconds: that a pair is shown.
        practice: pairs at the beginning whose answer is told and not counted.
        checks: pairs among the others whose fake nobody overlooks.
        pairs: that a rater judges, checks not counted; 0 for one of each image.
        submit_url: where the page sends answers to, as JSON; "" for nowhere. Mechanical Turk says so itself.
        min_checks: share of the checks that a rater must get right to be scored, in 0..1: decided before the answers.
        completion_url: where a rater is led once they have been sent, such as Prolific's; "" for nowhere.
    """

    seed: int = 0
    seconds: float = 1.0
    practice: int = 5
    checks: int = 5
    pairs: int = 0
    min_checks: float = MIN_CHECKS
    submit_url: str = ""
    completion_url: str = ""


def pair_up(
    truth: pathlib.Path, sources: Sequence[colorized.Source]
) -> tuple[dict[str, pathlib.Path], colorized.Fakes]:
    """Real images by name, and their colorizations; by name alone, never by order.

    Args:
        truth: folder of real images.
        sources: colorizations of all of them and of no others; each model has the same seeds of every image.

    Raises:
        StudyError: images of one name, one that lacks a colorization, or a colorization of no image.
        ImageError: no such folder, or no image in it.
    """
    real = colorized.by_name(truth)
    fakes = colorized.fakes_of(real, sources)
    used = {path for models in fakes.values() for seeds in models.values() for path in seeds.values()}
    for source in sources:
        for path in colorized.by_name(source.folder).values():
            if path not in used:
                raise StudyError(f"{path}: a colorization of no image in {truth}; expected NAME.png or NAME-1.png")
    return real, fakes


def recolored(image: np.ndarray) -> np.ndarray:
    """A fake that nobody overlooks, for checks: chroma rotated by 120 degrees and made stronger, luminance kept.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        The same shape and type.
    """
    luminance = arrays.luminance(image)[..., None]
    rotated = np.roll(image.astype(np.float64), 1, axis=-1)
    chroma = rotated - arrays.luminance(rotated)[..., None]
    # Grayscale images have no chroma to rotate: they become green.
    chroma = 2.0 * chroma + np.array([-40.0, 25.0, -40.0])
    return np.clip(np.rint(luminance + chroma), 0, 255).astype(np.uint8)


def build(truth: pathlib.Path, sources: Sequence[colorized.Source], output: pathlib.Path, options: Options) -> int:
    """Writes the study: `index.html` and the images it shows, whole or not at all.

    Args:
        truth: folder of real images.
        sources: colorizations of them.
        output: folder, made here; must not exist or be empty.
        options: what a rater meets.

    Returns:
        How many images are judged.

    Raises:
        StudyError: too few images, a pair that does not fit, sizes that differ, or an output that is in use.
        ImageError: an image that cannot be read.
    """
    output = output.absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StudyError(f"{output}: exists and is not empty; give another --output")
    real, fakes = pair_up(truth, sources)
    reserved = options.practice + options.checks
    if len(real) <= reserved:
        raise StudyError(
            f"{truth}: {len(real)} images, {reserved} of them go to practice and checks; give more images, or "
            "smaller --practice and --checks"
        )
    names = sorted(real)
    order = np.random.default_rng(options.seed).permutation(len(names))
    shuffled = [names[i] for i in order]
    practice, checks = shuffled[: options.practice], shuffled[options.practice : reserved]
    judged = sorted(shuffled[reserved:])
    for name in names:
        _check_sizes(real[name], [path for seeds in fakes[name].values() for path in seeds.values()])
    with _new_folder(output) as folder:
        shown = _Shown(folder / "images", options.seed)
        description = {
            "study": _identity(real, fakes, options),
            "seed": options.seed,
            "seconds": options.seconds,
            "pairs_per_rater": options.pairs or len(judged),
            "min_checks": options.min_checks,
            "submit_url": options.submit_url,
            "completion_url": options.completion_url,
            "practice": [shown.pair(name, real[name], *_all(fakes[name])[0]) for name in practice],
            "checks": [shown.check(name, real[name]) for name in checks],
            "judged": [[shown.pair(name, real[name], *fake) for fake in _all(fakes[name])] for name in judged],
        }
        template = page_template("study.html")
        # "</" would end the page's script wherever an image's name had it.
        text = json.dumps(description).replace("<", "\\u003c")
        (folder / "index.html").write_text(template.replace(_PLACE, text))
    return len(judged)


def page_template(name: str) -> str:
    """Returns a page of this package, with the script that shows a pair."""
    package = importlib.resources.files(__package__)
    page, script = (package.joinpath(file).read_text(encoding="utf-8") for file in (name, "pair.js"))
    return page.replace("/* PAIR */", script.strip())


@contextlib.contextmanager
def _new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside `path` to write to, renamed to `path` at the end, or removed on any exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
        folder = pathlib.Path(temporary) / path.name
        folder.mkdir()
        yield folder
        folder.replace(path)


def _all(models: Mapping[str, Mapping[str, pathlib.Path]]) -> list[tuple[str, str, pathlib.Path]]:
    return [(model, seed, path) for model, seeds in models.items() for seed, path in seeds.items()]


def _rgb(path: pathlib.Path) -> np.ndarray:
    image = read_image(path)
    if image.shape[-1] < 3:
        raise StudyError(f"{path}: a grayscale image; a pair needs two in colour")
    return image[..., :3]


def _check_sizes(real: pathlib.Path, fakes: Sequence[pathlib.Path]) -> None:
    size = _rgb(real).shape[:2]
    for fake in fakes:
        other = _rgb(fake).shape[:2]
        if other != size:
            raise StudyError(
                f"{fake}: {other[1]}x{other[0]}, but {real} is {size[1]}x{size[0]}; a pair must have one size"
            )


@dataclasses.dataclass
class _Shown:
    """Images of the page, all as PNG under names that tell nothing: neither content, nor format, nor size may."""

    folder: pathlib.Path
    seed: int
    names: dict[str, str] = dataclasses.field(default_factory=dict)

    def pair(self, name: str, real: pathlib.Path, model: str, seed: str, fake: pathlib.Path) -> dict[str, str]:
        """A real image and its colorization."""
        return {"image": name, "model": model, "seed": seed, "real": self._file(real), "fake": self._file(fake)}

    def check(self, name: str, real: pathlib.Path) -> dict[str, str]:
        """A real image and an obvious fake."""
        fake = self._write(f"check {name}", lambda: recolored(_rgb(real)))
        return {"image": name, "real": self._file(real), "fake": fake}

    def _file(self, path: pathlib.Path) -> str:
        return self._write(str(path.absolute()), lambda: _rgb(path))

    def _write(self, key: str, read: Callable[[], np.ndarray]) -> str:
        if key not in self.names:
            digest = hashlib.sha256(f"{self.seed} {key}".encode()).digest()
            self.names[key] = base64.b32encode(digest).decode().lower()[:_NAME_LENGTH] + ".png"
            write_image(self.folder / self.names[key], read())
        return self.names[key]


def _identity(real: Mapping[str, pathlib.Path], fakes: colorized.Fakes, options: Options) -> str:
    """A study's own number: of its images' contents and its options."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(options), sort_keys=True).encode())
    for name, path in sorted(real.items()):
        digest.update(name.encode() + path.read_bytes())
        for model, seeds in sorted(fakes[name].items()):
            for seed, fake in sorted(seeds.items()):
                digest.update(f"{model} {seed}".encode() + fake.read_bytes())
    return digest.hexdigest()[:16]
