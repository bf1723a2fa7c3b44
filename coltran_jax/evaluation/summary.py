"""Summaries of what was measured of each image: rows of a table."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from coltran_jax.evaluation import frechet
from coltran_jax.evaluation.bootstrap import bootstrap_means
from coltran_jax.evaluation.measures import GRAY, SAMPLED, Record
from coltran_jax.evaluation.metrics import METRICS, needing
from coltran_jax.evaluation.tables import text_table

_RESAMPLES = 2000


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
        frechet: distance to the real images, of each sample's number; None where no features were asked for.
    """

    name: str
    metrics: dict[str, Interval | None]
    correlation: float | None = None
    frechet: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class FrechetFrame:
    """The conditions under which Fréchet distances were measured; only distances of the same conditions are comparable.

    Attributes:
        label: "FID" where they are, else "Fréchet".
        features: network and resampling.
        crop: what became of images that are not square.
        size: of the images compared.
        count: images.
        reference: what they are compared with.
        reference_count: how many.
        real: of real images, the floor; against the reference, or between two halves where this is the same images.
        real_note: which of the two.
        gray: of gray images against the reference, the floor that colours must beat.
        warning: where the numbers mean little.
    """

    label: str
    features: str
    crop: str
    size: tuple[int, int]
    count: int
    reference: str
    reference_count: int
    real: float
    real_note: str
    gray: float
    warning: str | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The evaluation of a set of images.

    Attributes:
        protocol: that chose the images.
        num_images: evaluated.
        num_samples: of each.
        truth: of the true images, the metrics that need an image alone, and "bits", per pixel, of their coarse colours
            under the colorizer.
        rows: samples as trained and as released; other colorizers; what the upsamplers make of the truth; gray itself.
        frechet: what the rows' distances mean.
    """

    protocol: str
    num_images: int
    num_samples: int
    truth: dict[str, Interval]
    rows: list[Row]
    frechet: FrechetFrame | None = None


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
    frame: FrechetFrame | None = None,
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
        truth={name: interval(record["truth", name]) for name in ("bits", *(m.name for m in needing("image")))},
        rows=[_row(way, record, reference) for way in ways],
        frechet=frame,
    )


def _row(way: str, record: Record, reference: frechet.Statistics | None) -> Row:
    def mean(measure: str) -> Interval | None:
        values = record.get((way, measure))
        if measure == "colorfulness_difference":
            values = record[way, "colorfulness"] - record["truth", "colorfulness"][:, None]
        return None if values is None else interval(values.reshape(len(values), -1).mean(axis=1))

    bits, errors = record.get((way, "bits")), record[way, "ab_error"]
    best = correlation = distances = None
    if bits is not None and bits.shape[1] > 1:
        best = interval(np.take_along_axis(errors, bits.argmin(axis=1)[:, None], axis=1)[:, 0])
        centred = [(x - x.mean(axis=1, keepdims=True)).ravel() for x in (bits, errors)]
        if all(np.ptp(x) for x in centred):
            correlation = float(np.corrcoef(*centred)[0, 1])
    if reference is not None:
        features = record[way, "features"]
        distances = [
            frechet.frechet_distance(reference, frechet.Statistics.of(features[:, sample]))
            for sample in range(features.shape[1])
        ]
    means = {metric.name: best if metric.name == "best_ab_error" else mean(metric.name) for metric in METRICS}
    return Row(way, means, correlation, distances)


def frame_of(
    record: Record,
    reference: frechet.Statistics,
    *,
    features: str,
    is_inception: bool,
    crop: str,
    size: tuple[int, int],
    others: bool,
) -> FrechetFrame:
    """Returns the conditions of a record's Fréchet distances, with the floors that the record gives.

    Args:
        record: of all images, with features.
        reference: of the real images compared with.
        features: description of the feature network.
        is_inception: whether it is FID's.
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
        real = frechet.frechet_distance(reference, frechet.Statistics.of(truth))
        note = f"{len(truth):,} real images against the reference"
    else:
        real = frechet.distance_between_halves(truth)
        note = f"two halves, {len(truth) // 2:,} images each"
    return FrechetFrame(
        label="FID" if is_inception and enough else "Fréchet",
        features=features,
        crop=crop,
        size=size,
        count=len(truth),
        reference="other images" if others else "the same images, true",
        reference_count=reference.count,
        real=real,
        real_note=note,
        gray=frechet.frechet_distance(reference, frechet.Statistics.of(gray)),
        warning=warning,
    )


def cells(found: Evaluation) -> list[list[str]]:
    """The table: a line of titles, then a line a row."""
    titles = ["", *(metric.title for metric in METRICS), *([found.frechet.label] if found.frechet else [])]
    table = [titles]
    for row in found.rows:
        values = [(row.metrics[metric.name], metric.format) for metric in METRICS]
        line = [row.name, *("" if x is None else format(x.mean, form) for x, form in values)]
        if row.frechet:
            spread = f" ± {np.std(row.frechet):.2f}" if len(row.frechet) > 1 else ""
            line.append(f"{np.mean(row.frechet):.2f}{spread}")
        table.append(line)
    return table


def notes(found: Evaluation) -> tuple[list[str], list[str]]:
    """Lines above and below the table."""
    bits = found.truth["bits"]
    others = ", ".join(
        f"{metric.title.removesuffix(' %')} {found.truth[metric.name].mean:{metric.format}}"
        + " %" * (metric.unit == "%")
        for metric in needing("image")
    )
    above = [
        f"protocol {found.protocol}: {found.num_images:,} images, {found.num_samples} samples of each; the truth: "
        f"{bits.mean:.3f} bits/pixel ({bits.low:.3f} to {bits.high:.3f}), {others}"
    ]
    below = [
        f"{row.name}: correlation of a sample's bits with its ab error {row.correlation:+.2f}"
        for row in found.rows
        if row.correlation is not None
    ]
    if found.frechet:
        above += frechet_notes(found.frechet)
    below.append("PSNR and SSIM compare with one truth; of a gray image many colours are true.")
    return above, below


def frechet_notes(frame: FrechetFrame) -> list[str]:
    """Returns the lines that accompany every printed distance."""
    height, width = frame.size
    lines = [
        f"{frame.label}: {frame.features}; {frame.crop}, {height}x{width}; {frame.count:,} images against "
        f"{frame.reference_count:,} ({frame.reference})",
        f"  floors: real against real {frame.real:.2f} ({frame.real_note}), gray against real {frame.gray:.2f}",
    ]
    return lines + ([f"  warning: {frame.warning}"] if frame.warning else [])


def as_text(found: Evaluation) -> str:
    """A table for terminals."""
    above, below = notes(found)
    return "\n".join([*above, *text_table(cells(found), left=1), *below]) + "\n"
