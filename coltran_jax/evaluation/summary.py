"""Summaries of what was measured of each image: rows of a table."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from coltran_jax.evaluation import frechet, groups
from coltran_jax.evaluation.bootstrap import bootstrap_means
from coltran_jax.evaluation.calibration import Calibration, calibration_of
from coltran_jax.evaluation.features import FID
from coltran_jax.evaluation.groups import Group
from coltran_jax.evaluation.measures import GRAY, SAMPLED, Record, values_of
from coltran_jax.evaluation.metrics import METRICS, needing
from coltran_jax.evaluation.tables import text_table

_RESAMPLES = 2000
# What is measured of the true images' likelihood.
OF_TRUTH = ("bits", "bits_per_dim")


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over images, with its 95 % interval by bootstrap over them."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Row:
    """Images made in one way; means over images, of each image's samples.

    Attributes:
        name: of the way.
        metrics: name of a metric -> its mean; see `coltran_jax.evaluation.metrics`. None where the way has no such
            number: "bits" where the colorizer made no coarse colours, "diversity" and "best_ab_error" of one sample.
        correlation: of samples' bits with their "ab_error", both less their image's mean; None for fewer than two.
        distances: name of a metric that needs features -> its value for each sample's number, against the real images;
            None where no features were asked for.
    """

    name: str
    metrics: dict[str, Interval | None]
    correlation: float | None = None
    distances: dict[str, list[float]] | None = None


@dataclasses.dataclass(frozen=True)
class DistanceFrame:
    """The conditions under which distances between sets were measured; only those of the same are comparable.

    Attributes:
        titles: name of a metric -> what its value may be called: "FID" where it is, else "Fréchet".
        features: network and resampling.
        crop: what became of images that are not square.
        size: of the images compared.
        count: images.
        reference: what they are compared with.
        reference_count: how many.
        real: name of a metric -> its value for real images, the floor; against the reference, or between two halves
            where this is the same images.
        real_note: which of the two.
        gray: name of a metric -> its value for gray images against the reference, which colours must beat.
        warning: where the numbers mean little.
    """

    titles: dict[str, str]
    features: str
    crop: str
    size: tuple[int, int]
    count: int
    reference: str
    reference_count: int
    real: dict[str, float]
    real_note: str
    gray: dict[str, float]
    warning: str | None = None

    def line_of(self, values: dict[str, float]) -> str:
        """Returns the values with their titles."""
        return ", ".join(f"{self.titles[m.name]} {values[m.name]:{m.format}}" for m in needing("features"))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The evaluation of a set of images.

    Attributes:
        protocol: that chose the images.
        num_images: evaluated.
        num_samples: of each.
        truth: of the true images, the metrics that need an image alone; "bits", per pixel, of their coarse colours
            under the colorizer; and "bits_per_dim" of all networks, an upper bound, see
            `coltran_jax.pipeline.UpsampledTruth`.
        rows: samples as trained and as released; other colorizers; what the upsamplers make of the truth; gray itself.
        calibration: of the samples as trained.
        frame: what the rows' distances mean.
        groups: means by group, where they are asked for.
    """

    protocol: str
    num_images: int
    num_samples: int
    truth: dict[str, Interval]
    rows: list[Row]
    calibration: Calibration
    frame: DistanceFrame | None = None
    groups: list[Group] = dataclasses.field(default_factory=list)


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean of a value of each image and its 95 % interval by bootstrap."""
    array = np.asarray(values, np.float64)
    means = bootstrap_means(array, _RESAMPLES, seed)
    low, high = np.percentile(means, [2.5, 97.5]) if np.isfinite(array).all() else (array.min(), array.max())
    return Interval(float(array.mean()), float(low), float(high))


def summarize(
    protocol: str,
    ways: Sequence[str],
    record: Record,
    reference: frechet.Statistics | None = None,
    frame: DistanceFrame | None = None,
) -> Evaluation:
    """A table's numbers.

    Args:
        protocol: that chose the images.
        ways: rows.
        record: of all images.
        reference: of the real images' features, where distances are asked for.
        frame: what these distances mean.
    """
    return Evaluation(
        protocol=protocol,
        num_images=len(record["truth", "bits"]),
        num_samples=record[SAMPLED[0], "bits"].shape[1],
        truth={name: interval(record["truth", name]) for name in (*OF_TRUTH, *(m.name for m in needing("image")))},
        rows=[_row(way, record, _distances(way, record, reference, frame)) for way in ways],
        calibration=calibration_of(
            record["truth", "bits"],
            record[SAMPLED[0], "bits"],
            record["truth", "reliability"],
            record["truth", "coverage"],
            record[SAMPLED[0], "coverage"],
        ),
        frame=frame,
    )


def _row(way: str, record: Record, distances: dict[str, list[float]] | None) -> Row:
    bits, errors = record.get((way, "bits")), record[way, "ab_error"]
    correlation = None
    if bits is not None and bits.shape[1] > 1:
        centred = [(x - x.mean(axis=1, keepdims=True)).ravel() for x in (bits, errors)]
        if all(np.ptp(x) for x in centred):
            correlation = float(np.corrcoef(*centred)[0, 1])
    values = values_of(record, way)
    of_images = [metric.name for metric in METRICS if metric.needs != "features"]
    means = {name: interval(values[name]) if name in values else None for name in of_images}
    return Row(way, means, correlation, distances)


def _distances(
    way: str, record: Record, reference: frechet.Statistics | None, frame: DistanceFrame | None
) -> dict[str, list[float]] | None:
    """The distances of each sample's number; those of gray are one of the frame's floors."""
    if reference is None:
        return None
    if way == GRAY and frame:
        each = [frame.gray]
    else:
        made = record[way, "features"].swapaxes(0, 1)
        each = [all_distances(frechet.Statistics.of(features), reference) for features in made]
    return {name: [own[name] for own in each] for name in each[0]}


def frame_of(
    record: Record,
    reference: frechet.Statistics,
    *,
    features: str,
    titles: Mapping[str, str],
    crop: str,
    size: tuple[int, int],
    others: bool,
) -> DistanceFrame:
    """Returns the conditions of a record's distances between sets, with the floors that the record gives.

    Args:
        record: of all images, with features.
        reference: of the real images compared with.
        features: description of the feature network.
        titles: of distances that have a name of their own by these features.
        crop: what became of images that are not square.
        size: of the images compared.
        others: whether the reference is other images, not the truth of the same.
    """
    truth, gray = record["truth", "features"], record[GRAY, "features"][:, 0]
    count = min(len(truth), reference.count)
    enough = count >= frechet.MIN_IMAGES_FOR_FID
    warning = None
    if not enough:
        warning = (
            f"{count:,} images are too few for FID ({frechet.MIN_IMAGES_FOR_FID:,} at least): the distance is "
            "mostly that of small numbers; compare it with its floors alone"
        )
    if others:
        pair = frechet.Statistics.of(truth), reference
        note = f"{len(truth):,} real images against the reference"
    else:
        pair = frechet.halves(truth)
        note = f"two halves, {len(truth) // 2:,} images each"
    named = {name: title for name, title in titles.items() if enough or title != FID}
    return DistanceFrame(
        titles={metric.name: named.get(metric.name, metric.title) for metric in needing("features")},
        features=features,
        crop=crop,
        size=size,
        count=len(truth),
        reference="other images" if others else "the same images, true",
        reference_count=reference.count,
        real=all_distances(*pair),
        real_note=note,
        gray=all_distances(frechet.Statistics.of(gray), reference),
        warning=warning,
    )


def all_distances(made: frechet.Statistics, real: frechet.Statistics) -> dict[str, float]:
    """Returns the value of every metric that needs features, by name."""
    return {metric.name: metric.function(made, real) for metric in needing("features")}


def cells(found: Evaluation) -> list[list[str]]:
    """The table: a line of titles, then a line a row. Metrics that no row has are left out."""
    of_images = [m for m in METRICS if m.needs != "features" and any(row.metrics[m.name] for row in found.rows)]
    of_sets = needing("features") if found.frame else ()
    table = [["", *(m.title for m in of_images), *(found.frame.titles[m.name] for m in of_sets)]]
    for row in found.rows:
        values = [(row.metrics[metric.name], metric.format) for metric in of_images]
        line = [row.name, *("" if x is None else format(x.mean, form) for x, form in values)]
        for metric in of_sets:
            each = row.distances[metric.name]
            spread = f" ± {np.std(each):{metric.format}}" if len(each) > 1 else ""
            line.append(f"{np.mean(each):{metric.format}}{spread}")
        table.append(line)
    return table


def notes(found: Evaluation) -> tuple[list[str], list[str]]:
    """Lines above and below the table."""
    bits, dims = (found.truth[name] for name in OF_TRUTH)
    others = ", ".join(
        f"{metric.title.removesuffix(' %')} {found.truth[metric.name].mean:{metric.format}}"
        + " %" * (metric.unit == "%")
        for metric in needing("image")
    )
    above = [
        f"protocol {found.protocol}: {found.num_images:,} images, {found.num_samples} samples of each; the truth: "
        f"{bits.mean:.3f} bits/pixel ({bits.low:.3f} to {bits.high:.3f}), at most {dims.mean:.3f} bits/dim of all "
        f"networks, {others}"
    ]
    below = [
        f"{row.name}: correlation of a sample's bits with its ab error {row.correlation:+.2f}"
        for row in found.rows
        if row.correlation is not None
    ]
    if found.frame:
        above += distance_notes(found.frame)
    below += calibration_notes(found.calibration)
    below.append("PSNR and SSIM compare with one truth; of a gray image many colours are true.")
    return above, below


def calibration_notes(found: Calibration) -> list[str]:
    """Returns what the calibration says, in a line each."""
    num_samples = len(found.coverage)
    ranks = ", ".join(f"{100 * share:.0f}" for share in found.ranks)
    lines = [
        f"calibration: rank of the truth's likelihood among {num_samples} samples', from the most probable, in % of "
        f"images: {ranks} ({100 / len(found.ranks):.0f} each if samples are as the truth)",
        f"calibration: expected error of pixels' probabilities {100 * found.expected_error:.1f} %",
    ]
    covered = f"calibration: the true coarse colour is among {num_samples} samples' at {100 * found.coverage[-1]:.1f} %"
    if found.sample_coverage:
        fewer = num_samples - 1
        covered += (
            f" of pixels, among {fewer} samples' at {100 * found.coverage[-2]:.1f} %; a sample's own among {fewer} "
            f"others' at {100 * found.sample_coverage[-1]:.1f} %"
        )
        return [*lines, covered]
    return [*lines, f"{covered} of pixels"]


def distance_notes(frame: DistanceFrame) -> list[str]:
    """Returns the lines that accompany every printed distance."""
    height, width = frame.size
    lines = [
        f"{frame.titles['frechet']}: {frame.features}; {frame.crop}, {height}x{width}; {frame.count:,} images against "
        f"{frame.reference_count:,} ({frame.reference})",
        f"  floor, real against real ({frame.real_note}): {frame.line_of(frame.real)}",
        f"  floor, gray against real: {frame.line_of(frame.gray)}",
    ]
    return lines + ([f"  warning: {frame.warning}"] if frame.warning else [])


def as_text(found: Evaluation) -> str:
    """A table for terminals."""
    above, below = notes(found)
    by_group = ["", "as trained, by group", *text_table(groups.cells(found.groups), left=1)] if found.groups else []
    return "\n".join([*above, *text_table(cells(found), left=1), *below, *by_group]) + "\n"
