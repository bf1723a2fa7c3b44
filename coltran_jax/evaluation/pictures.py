"""Colorizations of a folder of pictures against the truth, and where each stage loses."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from coltran_jax import images
from coltran_jax.evaluation import color_metrics
from coltran_jax.evaluation.bootstrap import bootstrap_means
from coltran_jax.faces import text_table
from coltran_jax.picture_files import PictureError, read_picture
from coltran_jax.pipeline import Pipeline

# Ways to draw; rows of the table.
SAMPLED = ("as trained", "as released")
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over pictures, with its 95 % interval by bootstrap over them."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Row:
    """Pictures made in one way; means over pictures, of each picture's samples.

    Attributes:
        name: of the way.
        colorfulness: Hasler and Süsstrunk's.
        colorfulness_difference: less that of the truth.
        ab_error: mean distance to the truth in CIELAB's ab plane.
        psnr: in dB, against the truth.
        ssim: against the truth.
        diversity: mean distance between samples in the ab plane; None for fewer than two.
        bits: of the coarse picture, per pixel, under the colorizer as trained; None where it made none.
        best_ab_error: of each picture's most probable sample; None for fewer than two.
        correlation: of samples' bits with their `ab_error`, both less their picture's mean; None for fewer than two.
    """

    name: str
    colorfulness: Interval
    colorfulness_difference: Interval
    ab_error: Interval
    psnr: Interval
    ssim: Interval
    diversity: Interval | None = None
    bits: Interval | None = None
    best_ab_error: Interval | None = None
    correlation: float | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Of a folder.

    Attributes:
        num_pictures: evaluated.
        num_samples: of each.
        truth_bits: per pixel, of the true coarse pictures under the colorizer.
        truth_colorfulness: of the true pictures.
        rows: samples as trained and as released; what the upsamplers make of the truth; gray itself.
    """

    num_pictures: int
    num_samples: int
    truth_bits: Interval
    truth_colorfulness: Interval
    rows: list[Row]


@dataclasses.dataclass(frozen=True)
class _Measured:
    """Of one picture, made in one way.

    Attributes:
        colorfulness: (S,) of each sample, as all but the last.
        colorfulness_difference: less that of the truth.
        ab_error: against the truth.
        psnr: against the truth.
        ssim: against the truth.
        bits: per pixel; empty where the colorizer made nothing.
        diversity: None for fewer than two samples.
    """

    colorfulness: np.ndarray
    colorfulness_difference: np.ndarray
    ab_error: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray
    bits: np.ndarray
    diversity: float | None


def _measure(pictures: np.ndarray, truth: np.ndarray, bits: Sequence[float] = ()) -> _Measured:
    colorful = np.array([color_metrics.colorfulness(picture) for picture in pictures])
    against = (color_metrics.ab_distance, color_metrics.psnr, color_metrics.ssim)
    return _Measured(
        colorful,
        colorful - color_metrics.colorfulness(truth),
        *(np.array([metric(picture, truth) for picture in pictures]) for metric in against),
        bits=np.asarray(bits),
        diversity=color_metrics.diversity(pictures) if len(pictures) > 1 else None,
    )


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean of a value of each picture and its 95 % interval by bootstrap."""
    array = np.asarray(values, np.float64)
    means = bootstrap_means(array, _RESAMPLES, seed)
    low, high = np.percentile(means, [2.5, 97.5]) if np.isfinite(array).all() else (array.min(), array.max())
    return Interval(float(array.mean()), float(low), float(high))


def read_truths(pipeline: Pipeline, paths: Sequence[pathlib.Path]) -> np.ndarray:
    """Centre squares at the final resolution: (P, h', w', 3) uint8.

    Raises:
        PictureError: a picture that cannot be read, or a gray one.
    """
    truths = []
    for path in paths:
        try:
            truths.append(pipeline.truth(read_picture(path)))
        except PictureError:
            raise
        except ValueError as error:
            raise PictureError(f"{path}: {error}") from None
    return np.stack(truths)


def evaluate(
    pipeline: Pipeline,
    truths: np.ndarray,
    *,
    samples: int = 3,
    seed: int = 0,
    temperature: float = 1.0,
    progress: Callable[[Sequence[np.ndarray]], Iterable[np.ndarray]] = iter,
) -> Evaluation:
    """Colorizes true pictures' gray and compares.

    Args:
        pipeline: the networks.
        truths: (P, h', w', 3) uint8, at least one.
        samples: of each picture.
        seed: of the draws.
        temperature: of the draws.
        progress: passes on the batches that it is given, and may show how far it is.

    Returns:
        Means with their intervals; uneven last batches are counted exactly.
    """
    at_once = max(1, pipeline.default_batch_size // samples)
    given = {"coarse": "true coarse colours", "fine": "true small picture"}
    if not pipeline.has_fine:
        del given["fine"]
    measured: dict[str, list[_Measured]] = {name: [] for name in (*SAMPLED, *given.values(), "gray")}
    truth_bits: list[float] = []
    pixels = np.prod(pipeline.coarse_resolution)
    batches = [truths[start : start + at_once] for start in range(0, len(truths), at_once)]
    for batch in progress(batches):
        truth_bits += list(-pipeline.log_likelihood_bits(batch) / pixels)
        for name in SAMPLED:
            found = pipeline.colorize(
                list(batch),
                samples=samples,
                seed=seed,
                temperature=temperature,
                square=True,
                as_released=name == "as released",
                batch_size=at_once * samples,
            )
            for truth, result in zip(batch, found, strict=True):
                # As trained, the sampler's own is the same.
                bits = -result.log_likelihood_bits / pixels
                if name == "as released":
                    bits = -pipeline.log_likelihood_bits(np.stack([truth] * samples), result.coarse) / pixels
                measured[name].append(_measure(result.images, truth, bits))
        for which, name in given.items():
            restored = pipeline.upsample_truth(batch, which)
            measured[name] += [_measure(x[None], truth) for x, truth in zip(restored, batch, strict=True)]
        grays = np.repeat(images.gray_from_rgb(batch), 3, axis=-1)
        measured["gray"] += [_measure(gray[None], truth) for gray, truth in zip(grays, batch, strict=True)]
    colorfulness = interval([color_metrics.colorfulness(truth) for truth in truths])
    rows = [_row(name, found) for name, found in measured.items()]
    return Evaluation(len(truths), samples, interval(truth_bits), colorfulness, rows)


def _row(name: str, measured: Sequence[_Measured]) -> Row:
    def mean(field: str) -> Interval:
        return interval([getattr(own, field).mean() for own in measured])

    several, scored = measured[0].diversity is not None, measured[0].bits.size > 0
    correlation = None
    if several and scored:
        bits, errors = (
            np.concatenate([x - x.mean() for x in values])
            for values in ([own.bits for own in measured], [own.ab_error for own in measured])
        )
        correlation = float(np.corrcoef(bits, errors)[0, 1]) if np.ptp(bits) and np.ptp(errors) else None
    return Row(
        name,
        *(mean(field) for field in ("colorfulness", "colorfulness_difference", "ab_error", "psnr", "ssim")),
        diversity=interval([own.diversity for own in measured]) if several else None,
        bits=mean("bits") if scored else None,
        best_ab_error=interval([own.ab_error[own.bits.argmin()] for own in measured]) if several and scored else None,
        correlation=correlation,
    )


def as_text(found: Evaluation) -> str:
    """A table for terminals."""
    columns = [
        ("colourfulness", "colorfulness", ".1f"),
        ("- truth", "colorfulness_difference", "+.1f"),
        ("ab error", "ab_error", ".2f"),
        ("best ab", "best_ab_error", ".2f"),
        ("diversity", "diversity", ".2f"),
        ("bits/pixel", "bits", ".3f"),
        ("PSNR dB", "psnr", ".2f"),
        ("SSIM", "ssim", ".3f"),
    ]
    table = [["", *(title for title, _, _ in columns)]]
    for row in found.rows:
        values = [getattr(row, name) for _, name, _ in columns]
        cells = ["" if x is None else format(x.mean, form) for x, (_, _, form) in zip(values, columns, strict=True)]
        table.append([row.name, *cells])
    bits = found.truth_bits
    head = f"{found.num_pictures} pictures, {found.num_samples} samples of each; the truth: "
    head += f"{bits.mean:.3f} bits/pixel ({bits.low:.3f} to {bits.high:.3f}), "
    head += f"colourfulness {found.truth_colorfulness.mean:.1f}"
    tail = [
        f"{row.name}: correlation of a sample's bits with its ab error {row.correlation:+.2f}"
        for row in found.rows
        if row.correlation is not None
    ]
    note = "PSNR and SSIM compare with one truth; of a gray picture many colours are true."
    return "\n".join([head, *text_table(table, left=1), *tail, note]) + "\n"
