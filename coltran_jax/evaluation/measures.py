"""Measures each image, made in each way."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from coltran_jax.evaluation import calibration
from coltran_jax.evaluation.metrics import METRICS, needing
from coltran_jax.evaluation.perceptual import Perceptual
from coltran_jax.images import arrays
from coltran_jax.images.files import thumbnail
from coltran_jax.pipeline import Pipeline
from coltran_jax.sampling.options import SamplingOptions

# Ways to draw, and what the upsamplers are given; with gray, rows of the table.
SAMPLED = ("as trained", "as released")
GIVEN = {"true coarse colours": "coarse", "true small image": "fine"}
GRAY = "gray"

# Of P images; keys are (way, measure) or ("truth", measure). First axis P; where a way has samples, second axis S.
Record = dict[tuple[str, str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Draws:
    """Says how colorizations are drawn, and what is kept of them.

    Attributes:
        sampling: options of the draws.
        own_luminance: compare what `colorize` gives, the chroma of the networks on the image's own luminance; otherwise
            what the networks give.
        thumbnail_size: side of the images that are kept for a report; 0 for none.
        skip_released: draw as trained alone.
    """

    sampling: SamplingOptions = dataclasses.field(default_factory=lambda: SamplingOptions(samples=3))
    own_luminance: bool = False
    thumbnail_size: int = 0
    skip_released: bool = False

    @property
    def sampled(self) -> tuple[str, ...]:
        """The ways to draw."""
        return SAMPLED[:1] if self.skip_released else SAMPLED


def ways(pipeline: Pipeline, draws: Draws, colorized: Sequence[str] = ()) -> list[str]:
    """Rows of the table: how images are made."""
    given = [way for way, what in GIVEN.items() if what != "fine" or pipeline.has_fine]
    return [*draws.sampled, *colorized, *given, GRAY]


def measure(
    pipeline: Pipeline,
    truths: np.ndarray,
    draws: Draws,
    extract: Callable[[np.ndarray], np.ndarray] | None = None,
    colorized: Mapping[str, np.ndarray] | None = None,
    lpips: Perceptual | None = None,
) -> Record:
    """Colorizes true images' gray and compares.

    Args:
        pipeline: the networks.
        truths: (P, h', w', 3) uint8.
        draws: how.
        extract: features for distances between sets, (B, h', w', 3) uint8 -> (B, D) float32.
        colorized: model -> (P, S', h', w', 3) uint8, what other colorizers made of the same images.
        lpips: distance of images to the true ones.

    Returns:
        Keys are (way, name). Of every way, the metrics that need an image or the truth, (P, S), see
        `coltran_jax.evaluation.metrics`; of those with several samples, the metrics that need samples, (P,); of
        sampled ones "bits" (P, S), per pixel, under the network as trained; with `extract` "features" (P, S, D), with
        `lpips` "lpips" (P, S). Of "truth" the metrics that need an image, "bits" and "bits_per_dim", (P,), "features"
        (P, D) and "reliability" (P, 15, 3); see `coltran_jax.evaluation.calibration` for this, and for the "coverage"
        of "truth" (P, S) and of the draws as trained (P, S - 1). With a thumbnail size t "thumbnails" (P, S, t, t, 3),
        of "gray" and "truth" S is 1, and "entropy" (P, h, w) of the draws as trained, in bits, mean over samples.
    """
    pixels = np.prod(pipeline.coarse_resolution)
    scores, true_coarse = pipeline.score_truth(truths)
    bits = -scores.log_probability_bits.sum(axis=(1, 2))
    upsampled = pipeline.upsample_truth(truths)
    record: Record = {
        ("truth", "bits"): bits / pixels,
        ("truth", "bits_per_dim"): (bits + upsampled.bits) / truths[0].size,
        ("truth", "reliability"): calibration.reliability_counts(scores),
    }
    made: dict[str, np.ndarray] = {}
    for way in draws.sampled:
        found = pipeline.colorize(
            list(truths),
            options=dataclasses.replace(draws.sampling, as_released=way == "as released"),
            square=not draws.own_luminance,
            batch_size=len(truths) * draws.sampling.samples,
        )
        made[way] = np.stack([result.images for result in found])
        # As trained, the sampler's own likelihood is the network's.
        likelihoods = np.stack([result.log_likelihood_bits for result in found])
        if way == "as released":
            coarse = np.concatenate([result.coarse for result in found])
            repeated = np.repeat(truths, draws.sampling.samples, axis=0)
            likelihoods = pipeline.log_likelihood_bits(repeated, coarse).reshape(likelihoods.shape)
        else:
            drawn = arrays.coarse_from_rgb(np.stack([result.coarse for result in found]))
            record["truth", "coverage"], record[way, "coverage"] = calibration.coverage(drawn, true_coarse)
            if draws.thumbnail_size:
                record[way, "entropy"] = np.stack([result.entropy_bits.mean(axis=0) for result in found])
        record[way, "bits"] = -likelihoods / pixels
    made |= colorized or {}
    for way in ways(pipeline, draws):
        if way in GIVEN:
            found = getattr(upsampled, GIVEN[way])
            if draws.own_luminance:
                found = np.stack([arrays.transfer_chroma(*pair) for pair in zip(truths, found, strict=True)])
            made[way] = found[:, None]
    made[GRAY] = np.repeat(arrays.gray_from_rgb(truths), 3, axis=-1)[:, None]
    for way, images in made.items():
        record |= _against_truth(way, images, truths)
        if lpips:
            own = images.reshape(-1, *images.shape[2:])
            record[way, "lpips"] = lpips(own, np.repeat(truths, images.shape[1], axis=0)).reshape(images.shape[:2])
    for metric in needing("image"):
        record["truth", metric.name] = np.array([metric.function(truth) for truth in truths], np.float64)
    if extract:
        for way, images in made.items():
            features = extract(images.reshape(-1, *images.shape[2:]))
            record[way, "features"] = features.reshape(*images.shape[:2], -1)
        record["truth", "features"] = extract(truths)
    if draws.thumbnail_size:
        for way, images in ((SAMPLED[0], made[SAMPLED[0]]), (GRAY, made[GRAY]), ("truth", truths[:, None])):
            record[way, "thumbnails"] = np.array(
                [[thumbnail(image, *2 * (draws.thumbnail_size,)) for image in own] for own in images]
            )
    return record


def values_of(record: Record, way: str) -> dict[str, np.ndarray]:
    """Returns the values of each image, mean over its samples: name of a metric that the way has -> (P,) float64."""
    measured = {metric.name: record[way, metric.name] for metric in METRICS if (way, metric.name) in record}
    measured["colorfulness_difference"] = record[way, "colorfulness"] - record["truth", "colorfulness"][:, None]
    values = {name: each.reshape(len(each), -1).mean(axis=1) for name, each in measured.items()}
    bits = record.get((way, "bits"))
    if bits is not None and bits.shape[1] > 1:
        best = np.take_along_axis(record[way, "ab_error"], bits.argmin(axis=1)[:, None], axis=1)
        values["best_ab_error"] = best[:, 0]
    return values


def _against_truth(way: str, images: np.ndarray, truths: np.ndarray) -> Record:
    """Measures (P, S, h', w', 3) against (P, h', w', 3) uint8."""
    record: Record = {}
    for metric in needing("image"):
        record[way, metric.name] = np.array([[metric.function(image) for image in own] for own in images])
    for metric in needing("truth"):
        record[way, metric.name] = np.array(
            [[metric.function(image, truth) for image in own] for own, truth in zip(images, truths, strict=True)]
        )
    if images.shape[1] > 1:
        for metric in needing("samples"):
            record[way, metric.name] = np.array([metric.function(samples) for samples in images])
    return record
