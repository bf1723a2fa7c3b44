"""Colorizations of a set of images against the truth, and where each stage loses."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from coltran_jax.cluster import wait_for_all
from coltran_jax.errors import UsageError
from coltran_jax.evaluation import frechet, page
from coltran_jax.evaluation.colorized import Fakes
from coltran_jax.evaluation.features import Features
from coltran_jax.evaluation.groups import groups_of
from coltran_jax.evaluation.measures import Draws, Record, measure, ways
from coltran_jax.evaluation.parts import Parts, merged
from coltran_jax.evaluation.perceptual import Perceptual
from coltran_jax.evaluation.protocols import Selection, check_sizes, pair_of_folders
from coltran_jax.evaluation.summary import DistanceFrame, Evaluation, all_distances, frame_of, summarize
from coltran_jax.files import check_writable, digest_of
from coltran_jax.images.arrays import area_resize, gray_from_rgb
from coltran_jax.images.files import read_rgb
from coltran_jax.pipeline import Pipeline

# A part is at least so many images, so that there are not too many files.
_MIN_PART = 8
_FEATURES_AT_ONCE = 32
_THUMBNAIL_SIZE = 160
_NOT_FOR_TABLES = ("thumbnails", "entropy")

# From the number of images to be measured to what is told of each few that are done.
Progress = Callable[[int], Callable[[int], object]]


def _silent(total: int) -> Callable[[int], object]:
    return lambda done: None


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The images to evaluate, and what they are compared with.

    Attributes:
        selection: of images.
        colorized: image -> model -> seed -> file, of other colorizers; see `study.pair_up`.
        features: for distances between sets, if they are wanted.
        lpips: the distance, if it is wanted.
        statistics: file with those of the reference images: read if it exists, else written.
    """

    selection: Selection
    colorized: Fakes = dataclasses.field(default_factory=dict)
    features: Features | None = None
    lpips: Perceptual | None = None
    statistics: pathlib.Path | None = None

    @property
    def models(self) -> list[str]:
        """Names of the other colorizers."""
        return list(next(iter(self.colorized.values()), {}))

    def settings(self, bundle: pathlib.Path, pipeline: Pipeline, draws: Draws) -> dict[str, Any]:
        """Returns everything that the measures depend on."""
        return {
            "protocol": self.selection.protocol.name,
            "images": self.selection.digest,
            "weights": digest_of(bundle),
            "dtype": pipeline.compute.dtype.name,
            "backend": pipeline.compute.backend,
            "features": self.features.description if self.features else None,
            "lpips": self.lpips is not None,
            "colorized": self.models,
            **dataclasses.asdict(draws.sampling),
            "own_luminance": draws.own_luminance,
            "thumbnail_size": draws.thumbnail_size,
            "skip_released": draws.skip_released,
        }


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Measures images part by part, those of this process.

    Attributes:
        pipeline: the networks.
        inputs: what is evaluated.
        draws: how.
        parts: where measures are kept.
        at_once: images that pass through the networks together; uneven last batches are filled up and cut.
    """

    pipeline: Pipeline
    inputs: Inputs
    draws: Draws
    parts: Parts
    at_once: int

    @property
    def numbers(self) -> range:
        """The numbers of the parts of all processes."""
        return self.parts.numbers(len(self.inputs.selection.images))

    def measure_parts(self, process: int = 0, processes: int = 1, progress: Progress = _silent) -> None:
        """Measures the parts of one of several processes that are not there yet."""
        missing = [number for number in self.numbers[process::processes] if number not in self.parts]
        tell = progress(sum(len(self._names(number)) for number in missing))
        for number in missing:
            self.parts.put(number, self._measured(number, tell))

    def _names(self, number: int) -> list[str]:
        size = self.parts.part_size
        return list(self.inputs.selection.images)[number * size : (number + 1) * size]

    def _measured(self, number: int, tell: Callable[[int], object]) -> Record:
        chosen = self._names(number)
        records = []
        for start in range(0, len(chosen), self.at_once):
            names = chosen[start : start + self.at_once]
            filled = names + [names[-1]] * (self.at_once - len(names))
            truths = np.stack([self.truth(self.inputs.selection.images[name]) for name in filled])
            colorized = {
                model: np.stack([self._colorized(name, model) for name in filled]) for model in self.inputs.models
            }
            extract = self.inputs.features.extract if self.inputs.features else None
            record = measure(self.pipeline, truths, self.draws, extract, colorized, self.inputs.lpips)
            records.append({key: value[: len(names)] for key, value in record.items()})
            tell(len(names))
        return merged(records)

    def truth(self, path: pathlib.Path) -> np.ndarray:
        """A real image as it is compared: (h', w', 3) uint8."""
        return self.pipeline.truth(read_rgb(path), stretch=self.inputs.selection.protocol.stretch)

    def _colorized(self, name: str, model: str) -> np.ndarray:
        """Reads another colorizer's results for an image: (S', h', w', 3) uint8."""
        files = self.inputs.colorized[name][model]
        images = [read_rgb(files[seed]) for seed in sorted(files, key=lambda seed: int(seed or 0))]
        if self.inputs.selection.protocol.reduced_from:
            images = [area_resize(image, *self.pipeline.final_resolution) for image in images]
        return np.stack(images)

    def evaluation(self, group_pattern: str = "") -> Evaluation:
        """The table of all parts, those of other processes too; see `evaluate`."""
        record = merged([self.parts.get(number, without=_NOT_FOR_TABLES) for number in self.numbers])
        found = self._summary(record)
        if not group_pattern:
            return found
        return dataclasses.replace(found, groups=groups_of(record, list(self.inputs.selection.images), group_pattern))

    def _summary(self, record: Record) -> Evaluation:
        rows = ways(self.pipeline, self.draws, self.inputs.models)
        name = self.inputs.selection.protocol.name
        if self.inputs.features is None:
            return summarize(name, rows, record)
        reference = self._reference(record)
        frame = frame_of(
            record,
            reference,
            features=self.inputs.features.description,
            titles=self.inputs.features.titles,
            crop=self.inputs.selection.protocol.crop,
            size=self.pipeline.final_resolution,
            others=self.inputs.selection.reference is not None,
        )
        return summarize(name, rows, record, reference, frame)

    def _reference(self, record: Record) -> frechet.Statistics:
        """Statistics of the real images that all are compared with."""
        selection, path = self.inputs.selection, self.inputs.statistics
        expected = reference_origin(self.inputs, self.pipeline.final_resolution)
        if path and path.exists():
            return frechet.load(path, expected)
        features = record["truth", "features"]
        if selection.reference is not None:
            features = extract_all(self.inputs.features, list(selection.reference.values()), self.truth)
        found = frechet.Statistics.of(features, expected)
        if path:
            found.save(path)
        return found


def begin(
    pipeline: Pipeline,
    inputs: Inputs,
    draws: Draws,
    bundle: pathlib.Path,
    folder: pathlib.Path | None = None,
) -> Evaluator:
    """An evaluator that continues what is in the folder.

    Args:
        pipeline: the networks.
        inputs: what is evaluated.
        draws: how.
        bundle: file of the networks.
        folder: for parts; None keeps them in memory.

    Raises:
        UsageError: the folder is another evaluation's or cannot be written to; other colorizations are not of the size
            compared, or named as another row.
        StatisticsError: statistics of something else, or too few images for them.
    """
    pipeline.check(draws.sampling)
    at_once = max(1, pipeline.default_batch_size // draws.sampling.samples)
    part_size = -(-_MIN_PART // at_once) * at_once
    files = [file for models in inputs.colorized.values() for seeds in models.values() for file in seeds.values()]
    reduced_from = inputs.selection.protocol.reduced_from
    check_sizes(files, (reduced_from, reduced_from) if reduced_from else pipeline.final_resolution)
    parts = Parts(folder, inputs.settings(bundle, pipeline, draws), part_size=part_size)
    taken = sorted(set(inputs.models) & set(ways(pipeline, draws)))
    if taken:
        raise UsageError(f"--colorized {taken[0]}=: the table has a row of that name; give another")
    if inputs.features:
        frechet.check_count(len(inputs.selection.images))
    if inputs.statistics and inputs.statistics.exists():
        frechet.load(inputs.statistics, reference_origin(inputs, pipeline.final_resolution))
    elif inputs.statistics:
        check_writable(inputs.statistics.absolute().parent)
    return Evaluator(pipeline, inputs, draws, parts, at_once)


def evaluate(
    pipeline: Pipeline,
    inputs: Inputs,
    draws: Draws,
    bundle: pathlib.Path,
    report: pathlib.Path | None = None,
    progress: Progress = _silent,
    group_pattern: str = "",
) -> Evaluation | None:
    """Colorizes true images' gray and compares; the processes of a cluster share the work.

    Args:
        pipeline: the networks.
        inputs: what is evaluated.
        draws: how.
        bundle: file of the networks.
        report: folder for the report and for what it is made of: an interrupted run continues. Several processes need
            one that all of them share.
        progress: is given the number of images to be measured; what it returns, of each few that are done.
        group_pattern: regular expression whose first match in an image's name names its group, for means by group; ""
            for none.

    Returns:
        Means with their intervals, in the first process; None in others.

    Raises:
        UsageError: the folder is another evaluation's, or other colorizations are not of the size compared.
        StatisticsError: statistics of something else.
    """
    process, processes = jax.process_index(), jax.process_count()
    if report:
        draws = dataclasses.replace(draws, thumbnail_size=_THUMBNAIL_SIZE)
    # The first process says how large parts are.
    if process:
        wait_for_all("begun")
    evaluator = begin(pipeline, inputs, draws, bundle, report and report / "parts")
    if not process:
        wait_for_all("begun")
    evaluator.measure_parts(process, processes, progress)
    wait_for_all("measured")
    if process:
        return None
    evaluation = evaluator.evaluation(group_pattern)
    if report:
        page.write(report, evaluation, evaluator.parts, list(inputs.selection.images))
    return evaluation


def reference_origin(inputs: Inputs, size: tuple[int, int]) -> dict[str, str]:
    """Returns everything that the statistics of the real images depend on."""
    names = inputs.selection.reference or inputs.selection.images
    return {
        "features": inputs.features.description,
        "crop": inputs.selection.protocol.crop,
        "size": f"{size[0]}x{size[1]}",
        "images": hashlib.sha256("\n".join(names).encode()).hexdigest()[:16],
    }


def extract_all(
    features: Features, paths: Sequence[pathlib.Path], read: Callable[[pathlib.Path], np.ndarray]
) -> np.ndarray:
    """Features of many images, (N, D) float32."""
    found = []
    for start in range(0, len(paths), _FEATURES_AT_ONCE):
        found.append(features.extract(np.stack([read(path) for path in paths[start : start + _FEATURES_AT_ONCE]])))
    return np.concatenate(found)


def compare_folders(
    one: pathlib.Path, other: pathlib.Path, load_features: Callable[[], Features]
) -> tuple[dict[str, float], DistanceFrame]:
    """The distances between any two folders of images, as they are, by the name of the metric, and what they mean.

    Args:
        one: folder, of colorizations say.
        other: folder of real images.
        load_features: gives the feature network, once it is clear that the folders can be compared.

    Raises:
        UsageError: images of different counts or sizes.
    """
    left, right = pair_of_folders(one, other)
    frechet.check_count(len(left))
    features = load_features()

    def gray(path: pathlib.Path) -> np.ndarray:
        return np.repeat(gray_from_rgb(read_rgb(path)), 3, axis=-1)

    made, real, grays = (extract_all(features, *args) for args in ((left, read_rgb), (right, read_rgb), (right, gray)))
    reference = frechet.Statistics.of(real)
    record: Record = {("truth", "features"): real, ("gray", "features"): grays[:, None]}
    frame = frame_of(
        record,
        reference,
        features=features.description,
        titles=features.titles,
        crop="as they are",
        size=read_rgb(left[0]).shape[:2],
        others=False,
    )
    frame = dataclasses.replace(frame, reference=str(other))
    return all_distances(frechet.Statistics.of(made), reference), frame
