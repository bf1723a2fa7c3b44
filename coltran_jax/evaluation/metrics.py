"""The one table of what an evaluation measures of images. A new metric is a function and a row of `METRICS`."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from coltran_jax.evaluation import color_metrics, set_distances
from coltran_jax.evaluation.frechet import frechet_distance
from coltran_jax.images import arrays

# What a metric's function takes: an image; an image and the true one; all samples of an image; the features of all
# images made and of all real ones. It has none where a network that is loaded on demand compares an image with the
# true one ("perceptual"), and where `coltran_jax.evaluation.summary` makes the number of others.
Needs = Literal["image", "truth", "samples", "perceptual", "features", "others"]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number for each image, or for a set of them.

    Attributes:
        name: in JSON, where the metric is a key.
        title: of its column.
        format: of its mean, as `format` takes it.
        unit: "" for none.
        better: "lower", "higher", or "truth" for as near to the truth's as possible; "" where no direction is better.
        needs: what `function` takes. The metrics that need an image alone are also measured of the true images.
        function: (H, W, 3) uint8 -> float for "image"; (H, W, 3), (H, W, 3) for "truth"; (S, H, W, 3) for "samples";
            for "features" two `coltran_jax.evaluation.frechet.Statistics`, of the images made and of the real ones.
    """

    name: str
    title: str
    format: str
    unit: str
    better: Literal["lower", "higher", "truth", ""]
    needs: Needs
    function: Callable[..., float] | None = None


def _bar_percentage(image: np.ndarray) -> float:
    return 100.0 * color_metrics.has_bar(image)


METRICS = (
    Metric("colorfulness", "colourfulness", ".1f", "", "truth", "image", arrays.colorfulness),
    Metric("colorfulness_difference", "- truth", "+.1f", "", "truth", "others"),
    Metric("chroma", "chroma", ".1f", "", "truth", "image", color_metrics.chroma),
    Metric("specks", "specks %", ".2f", "%", "truth", "image", color_metrics.speck_percentage),
    Metric("bars", "bars %", ".1f", "%", "truth", "image", _bar_percentage),
    Metric("ab_error", "ab error", ".2f", "", "lower", "truth", color_metrics.ab_distance),
    Metric("ciede2000", "ΔE00", ".2f", "", "lower", "truth", color_metrics.ciede2000),
    Metric("best_ab_error", "best ab", ".2f", "", "lower", "others"),
    Metric("diversity", "diversity", ".2f", "", "", "samples", color_metrics.diversity),
    Metric("bits", "bits/pixel", ".3f", "bits per pixel", "", "others"),
    Metric("bits_per_dim", "bits/dim", ".3f", "bits per dimension", "lower", "others"),
    Metric("psnr", "PSNR dB", ".2f", "dB", "higher", "truth", color_metrics.psnr),
    Metric("ssim", "SSIM", ".3f", "", "higher", "truth", color_metrics.ssim),
    Metric("lpips", "LPIPS", ".3f", "", "lower", "perceptual"),
    Metric("frechet", "Fréchet", ".2f", "", "lower", "features", frechet_distance),
    Metric("kernel_distance", "kernel x1000", ".2f", "", "lower", "features", set_distances.kernel_distance),
    Metric("gaussian_distance", "Gaussian x1000", ".3f", "", "lower", "features", set_distances.gaussian_distance),
    Metric("precision", "precision", ".3f", "", "higher", "features", set_distances.precision),
    Metric("recall", "recall", ".3f", "", "higher", "features", set_distances.recall),
)


def needing(needs: Needs) -> tuple[Metric, ...]:
    """Returns the metrics whose functions take this."""
    return tuple(metric for metric in METRICS if metric.needs == needs)
