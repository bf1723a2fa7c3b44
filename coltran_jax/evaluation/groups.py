"""Means over groups of images, where a mean over all hides that some kinds of image are easy and others are not."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from coltran_jax.data.folder import group_of
from coltran_jax.evaluation.measures import GRAY, SAMPLED, Record, values_of
from coltran_jax.evaluation.metrics import METRICS, needing

# Images whose names match nothing.
OTHERS = "others"
# Columns of the table, as far as the samples have them.
_SHOWN = ("chroma", "specks", "bars", "ab_error", "best_ab_error", "lpips")


@dataclasses.dataclass(frozen=True)
class Group:
    """The images of a group: means over them.

    Attributes:
        name: of the group.
        num_images: in it.
        metrics: name of a metric -> its mean, of the samples as trained.
        truth: of the true images, "bits" per pixel and the metrics that need an image alone.
        gray_ab_error: of gray images.
    """

    name: str
    num_images: int
    metrics: dict[str, float]
    truth: dict[str, float]
    gray_ab_error: float


def groups_of(record: Record, names: Sequence[str], pattern: str) -> list[Group]:
    """Groups images by the first match of a regular expression in their names; groups are in order of their names."""
    found = [group_of(name, pattern) for name in names]
    keys = np.array([OTHERS if group is None else group for group in found])
    metrics, gray = values_of(record, SAMPLED[0]), values_of(record, GRAY)["ab_error"]
    truth = {name: record["truth", name] for name in ("bits", *(metric.name for metric in needing("image")))}
    return [
        Group(
            str(key),
            int((chosen := keys == key).sum()),
            _means(metrics, chosen),
            _means(truth, chosen),
            float(gray[chosen].mean()),
        )
        for key in np.unique(keys)
    ]


def _means(values: Mapping[str, np.ndarray], chosen: np.ndarray) -> dict[str, float]:
    return {name: float(value[chosen].mean()) for name, value in values.items()}


def cells(groups: Sequence[Group]) -> list[list[str]]:
    """The table: a line of titles, then a line a group."""
    shown = [metric for metric in METRICS if metric.name in _SHOWN and metric.name in groups[0].metrics]
    table = [["", "images", "truth's bits/pixel", "truth's chroma", *(m.title for m in shown), "gray's ab error"]]
    for group in groups:
        values = [f"{group.metrics[metric.name]:{metric.format}}" for metric in shown]
        of_truth = [f"{group.truth['bits']:.3f}", f"{group.truth['chroma']:.1f}"]
        table.append([group.name, f"{group.num_images:,}", *of_truth, *values, f"{group.gray_ab_error:.2f}"])
    return table
