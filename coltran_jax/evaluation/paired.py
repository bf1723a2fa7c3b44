"""Evaluations of several colorizers on the same images, put beside each other by the paired bootstrap."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from coltran_jax.errors import UsageError
from coltran_jax.evaluation.bootstrap import resampled_counts
from coltran_jax.evaluation.measures import SAMPLED, Record, values_of
from coltran_jax.evaluation.metrics import METRICS, Metric, needing
from coltran_jax.evaluation.parts import Parts, merged
from coltran_jax.evaluation.summary import OF_TRUTH
from coltran_jax.evaluation.tables import text_table

_RESAMPLES = 2000
# A difference of that size is seen with this probability by a test at the level of 5 %.
POWER = 0.8
_LEVEL = 0.05
# Settings of an evaluation that say which images were measured.
_SAME = ("protocol", "images")
# The truth's likelihood under the networks is of the rows that they sample.
_OF_TRUTH = tuple(
    dataclasses.replace(metric, name=f"truth_{metric.name}", title=f"truth {metric.title}", better="lower")
    for metric in METRICS
    if metric.name in OF_TRUTH
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of one evaluation.

    Attributes:
        name: in tables.
        report: folder of the evaluation.
        row: name of the row.
        values: name of a metric -> its value for each image, mean over samples, (P,) float64.
        distances: name of a metric that needs features -> its value for each sample's number.
        titles: name of such a metric -> what its values may be called, such as FID.
        num_samples: of each image.
    """

    name: str
    report: pathlib.Path
    row: str
    values: dict[str, np.ndarray]
    distances: dict[str, list[float]]
    titles: dict[str, str]
    num_samples: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of one entry from the first, in one metric.

    Attributes:
        metric: name.
        title: of the metric.
        baseline: mean of the first.
        mean: of this one.
        difference: `mean` less `baseline`.
        low: of its 95 % interval, by paired bootstrap over images.
        high: of its 95 % interval.
        probability_better: share of resamples in which this one is better; None where no direction is.
        images_needed: to see a difference of this size with 80 % probability, by a paired test at 5 %; None for none.
        detectable: the difference that so many images show with 80 % probability.
    """

    metric: str
    title: str
    baseline: float
    mean: float
    difference: float
    low: float
    high: float
    probability_better: float | None
    images_needed: int | None
    detectable: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Entries beside each other.

    Attributes:
        protocol: of all of them.
        num_images: measured.
        entries: names; the first is what the others are compared with.
        differences: one list for each other entry.
        distances: title of a distance between sets -> for each entry, its mean and standard deviation over samples'
            numbers; None for an entry without.
    """

    protocol: str
    num_images: int
    entries: list[str]
    differences: list[list[Difference]]
    distances: dict[str, list[tuple[float, float] | None]]


def read_entries(
    reports: Sequence[pathlib.Path], rows: Sequence[str]
) -> tuple[str, list[Entry], dict[str, np.ndarray]]:
    """Reads rows of evaluations, all of the same images.

    Args:
        reports: folders of `evaluate images --report`.
        rows: names of rows.

    Returns:
        The protocol; an entry for each report and row; and name of a metric -> the truth's value for each image.

    Raises:
        UsageError: a folder that is no finished evaluation, other images, or no such row.
    """
    first: dict[str, Any] = {}
    # Folders by name alone, where that tells them apart.
    distinct = len({report.name for report in reports}) == len(reports)
    entries, truth, features = [], {}, ""
    for report in reports:
        settings, evaluation, record = _read(report)
        first = first or settings
        for key in _SAME:
            if settings[key] != first[key]:
                raise UsageError(
                    f"{report}: evaluated on other images than {reports[0]} ({key} {settings[key]!r}, there "
                    f"{first[key]!r}); only evaluations of the same images can be compared"
                )
        own = settings["features"] or ""
        if own and features and own != features:
            raise UsageError(f"{report}: distances by {own!r}, others by {features!r}; they cannot be compared")
        features = features or own
        truth = {metric.name: record["truth", metric.name] for metric in needing("image")}
        by_name = {row["name"]: row for row in evaluation["rows"]}
        for row in rows:
            if row not in by_name:
                raise UsageError(f"{report} has no row {row!r}, expected one of {', '.join(by_name)}")
            title = report.name if distinct else str(report)
            name = ", ".join([title] * (len(reports) > 1) + [row] * (len(rows) > 1)) or row
            titles = evaluation["frame"]["titles"] if evaluation["frame"] else {}
            entries.append(_entry(name, report, row, record, by_name[row]["distances"] or {}, titles))
    if len(entries) < 2:
        raise UsageError("one evaluation and one row; give a second evaluation, or another --row")
    return first["protocol"], entries, truth


def _read(report: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any], Record]:
    path = report / "evaluation.json"
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected the folder of a finished evaluation with --report")
    try:
        evaluation = json.loads(path.read_text())
        settings = json.loads((report / "parts" / "settings.json").read_text())
        num_images = evaluation["num_images"]
        parts = Parts(report / "parts", settings, settings["part_size"])
    except (KeyError, OSError, TypeError, ValueError):
        raise UsageError(f"{report}: damaged, or of another version; evaluate again") from None
    names = [metric.name for metric in METRICS if metric.needs != "features"]
    return settings, evaluation, merged([parts.get(number, only=names) for number in parts.numbers(num_images)])


def _entry(
    name: str,
    report: pathlib.Path,
    row: str,
    record: Record,
    distances: dict[str, list[float]],
    titles: dict[str, str],
) -> Entry:
    values = values_of(record, row)
    # Two entries differ in it as they do in colourfulness.
    del values["colorfulness_difference"]
    if row in SAMPLED:
        values |= {metric.name: record["truth", metric.name.removeprefix("truth_")] for metric in _OF_TRUTH}
    return Entry(name, report, row, values, distances, titles, record[row, "ab_error"].shape[1])


def compare(protocol: str, entries: Sequence[Entry], truth: dict[str, np.ndarray]) -> Comparison:
    """Compares entries with the first of them; the arguments are those that `read_entries` returns."""
    baseline = entries[0]
    num_images = len(baseline.values["ab_error"])
    metrics = [metric for metric in (*METRICS, *_OF_TRUTH) if metric.needs != "features"]
    differences = []
    for entry in entries[1:]:
        # Rows of one report share their network, and so the truth's likelihood.
        own = [m for m in metrics if m not in _OF_TRUTH or entry.report != baseline.report]
        shared = [m for m in own if all(_is_finite(one.values.get(m.name)) for one in (baseline, entry))]
        differences.append(
            [
                difference_of(metric, baseline.values[metric.name], entry.values[metric.name], truth.get(metric.name))
                for metric in shared
            ]
        )
    distances = {}
    for metric in needing("features"):
        own = [entry.distances.get(metric.name) for entry in entries]
        if any(own):
            distances[title_of(metric, entries)] = [(float(np.mean(x)), float(np.std(x))) if x else None for x in own]
    return Comparison(protocol, num_images, [entry.name for entry in entries], differences, distances)


def title_of(metric: Metric, entries: Sequence[Entry]) -> str:
    """Returns the title of a metric; of a distance between sets, the name that the entries' features give it."""
    return next((entry.titles[metric.name] for entry in entries if metric.name in entry.titles), metric.title)


def _is_finite(values: np.ndarray | None) -> bool:
    """A colorization equal to the truth has an infinite PSNR, which has no mean."""
    return values is not None and bool(np.isfinite(values).all())


def difference_of(
    metric: Metric,
    baseline: np.ndarray,
    other: np.ndarray,
    truth: np.ndarray | None = None,
    resamples: int = _RESAMPLES,
) -> Difference:
    """The difference of two colorizers' values on the same images.

    Args:
        metric: that the values are of.
        baseline: (P,) of the one.
        other: (P,) of the other.
        truth: (P,) of the true images, where the metric is best near theirs.
        resamples: of the bootstrap.
    """
    columns = np.stack([baseline, other, np.zeros_like(other) if truth is None else truth], axis=1)
    means = np.concatenate([counts @ columns for counts in resampled_counts(len(other), resamples)]) / len(other)
    own = other - baseline
    low, high = np.percentile(means[:, 1] - means[:, 0], [100 * _LEVEL / 2, 100 - 100 * _LEVEL / 2])
    losses = {"lower": means[:, :2], "higher": -means[:, :2], "truth": np.abs(means[:, :2] - means[:, 2:])}.get(
        metric.better
    )
    spread = float(own.std(ddof=1)) if len(own) > 1 else 0.0
    return Difference(
        metric=metric.name,
        title=metric.title,
        baseline=float(baseline.mean()),
        mean=float(other.mean()),
        difference=float(own.mean()),
        low=float(low),
        high=float(high),
        probability_better=None if losses is None else float((losses[:, 1] < losses[:, 0]).mean()),
        images_needed=images_needed(spread, float(own.mean())),
        detectable=_NEEDED * spread / np.sqrt(len(own)),
    )


# Standard errors that a difference must measure, so that a test sees it with that power.
_NEEDED = float(stats.norm.ppf(1 - _LEVEL / 2) + stats.norm.ppf(POWER))


def images_needed(spread: float, difference: float) -> int | None:
    """The number of images that a paired test at the level of 5 % takes to see a difference with a power of 80 %.

    Args:
        spread: standard deviation, over images, of the difference between two colorizers.
        difference: of their means.

    Returns:
        The number, by the normal approximation; None for no difference.
    """
    if not difference:
        return None
    return int(np.ceil((_NEEDED * spread / difference) ** 2))


def cells_of(baseline: str, differences: Sequence[Difference]) -> list[list[str]]:
    """Returns a table of an entry's differences from the first: a line of titles, then a line a metric."""
    rows = [["", baseline, "this", "difference", "95 % interval", "P(better)", "images needed", "detectable"]]
    for own in differences:
        rows.append(
            [
                own.title,
                f"{own.baseline:.3f}",
                f"{own.mean:.3f}",
                f"{own.difference:+.3f}",
                f"{own.low:+.3f} to {own.high:+.3f}",
                "" if own.probability_better is None else f"{own.probability_better:.3f}",
                "" if own.images_needed is None else f"{own.images_needed:,}",
                f"{own.detectable:.3f}",
            ]
        )
    return rows


def as_text(found: Comparison, metric: str | None = None, size: float | None = None) -> str:
    """Returns tables for terminals.

    Args:
        found: the comparison.
        metric: name of a metric, of which to say how many images show a difference of `size`.
        size: see `metric`.
    """
    lines = [f"protocol {found.protocol}: {found.num_images:,} images; differences from {found.entries[0]}"]
    for name, differences in zip(found.entries[1:], found.differences, strict=True):
        for own in differences:
            if own.metric == metric and size:
                needed = np.ceil(found.num_images * (own.detectable / size) ** 2)
                lines.append(f"{name}: a difference of {size:g} in {own.title} is seen with {needed:,.0f} images")
        rows = cells_of(found.entries[0], differences)
        lines += ["", *text_table([[name, *rows[0][1:]], *rows[1:]], left=1)]
    if found.distances:
        rows = [["distance to real images, mean ± deviation over samples", *found.distances]]
        for number, name in enumerate(found.entries):
            own = [each[number] for each in found.distances.values()]
            rows.append([name, *("" if pair is None else f"{pair[0]:.3f} ± {pair[1]:.3f}" for pair in own)])
        lines += ["", *text_table(rows, left=1)]
    lines += [
        "",
        f"images needed: to see the difference with {100 * POWER:.0f} % probability, tested at 5 %; detectable: the "
        "difference that these images show so.",
    ]
    return "\n".join(lines) + "\n"
