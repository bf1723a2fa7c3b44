"""Calibration of the sampler: whether its samples are draws from the distribution that true images are from.

A Fréchet distance says nothing of this. If samples and truth were draws from one distribution given the gray image,
then the truth's likelihood would have any rank among the samples' as often as any other; of pixels whose most probable
colour has probability p, a share p would have this colour; and samples would have the truth's colour among them as
often as the colour of one more sample.
"""

import dataclasses

import numpy as np

from coltran_jax.sampling.sampler import Scores

# Of equal width, as Guo et al., 2017, have them.
NUM_BINS = 15


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Pixels whose most probable colour's probability is in one range.

    Attributes:
        probability: mean, of these pixels; 0 without any.
        accuracy: share of them whose true colour it is; 0 without any.
        share: of all pixels.
    """

    probability: float
    accuracy: float
    share: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Calibration over all images.

    Attributes:
        ranks: share of images whose truth has rank 0, 1, ... S among S samples, rank 0 if it is the most probable.
        expected_error: the expected calibration error of pixels' most probable colours, in 0..1.
        reliability: what it is made of, by ranges of probability.
        coverage: share of pixels whose true coarse colour is among the first 1, 2, ... S samples'.
        sample_coverage: share of pixels whose colour in one sample is among 1, 2, ... S - 1 others'.
    """

    ranks: list[float]
    expected_error: float
    reliability: list[Reliability]
    coverage: list[float]
    sample_coverage: list[float]


def reliability_counts(scores: Scores) -> np.ndarray:
    """Counts the pixels of each image by the probability of their most probable colour.

    Args:
        scores: of B images' true colours.

    Returns:
        (B, 15, 3) float64: pixels, the sum of their probabilities, pixels whose true colour it is.
    """
    found = np.zeros((len(scores.max_probability), NUM_BINS, 3))
    bins = np.minimum((scores.max_probability * NUM_BINS).astype(int), NUM_BINS - 1)
    for image, (own, probabilities, correct) in enumerate(
        zip(bins, scores.max_probability, scores.is_most_probable, strict=True)
    ):
        for place, values in enumerate((None, probabilities, correct)):
            weights = None if values is None else values.ravel().astype(np.float64)
            found[image, :, place] = np.bincount(own.ravel(), weights, minlength=NUM_BINS)
    return found


def coverage(samples: np.ndarray, truths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts how often some samples have a pixel's colour among them.

    Args:
        samples: (B, S, h, w) coarse colours.
        truths: (B, h, w) coarse colours.

    Returns:
        (B, S), the share of pixels whose true colour is among the first 1, 2, ... S samples; (B, S - 1), the share
        whose colour in one sample is among 1, 2, ... S - 1 others, mean over that sample.
    """
    num_samples = samples.shape[1]
    of_truth = _covered(samples, truths)
    of_samples = np.zeros((len(samples), num_samples - 1))
    for left_out in range(num_samples):
        others = np.delete(samples, left_out, axis=1)
        of_samples += _covered(others, samples[:, left_out]) / num_samples
    return of_truth, of_samples


def _covered(samples: np.ndarray, colors: np.ndarray) -> np.ndarray:
    equal = samples == colors[:, None]
    return np.logical_or.accumulate(equal, axis=1).mean(axis=(2, 3))


def calibration_of(
    truth_bits: np.ndarray,
    sample_bits: np.ndarray,
    counts: np.ndarray,
    of_truth: np.ndarray,
    of_samples: np.ndarray,
) -> Calibration:
    """Summarizes all images.

    Args:
        truth_bits: (P,) bits of the true coarse images.
        sample_bits: (P, S) of the samples.
        counts: (P, 15, 3) of `reliability_counts`.
        of_truth: (P, S) of `coverage`.
        of_samples: (P, S - 1) of `coverage`.
    """
    ranks = (sample_bits < truth_bits[:, None]).sum(axis=1)
    pixels, probabilities, correct = counts.sum(axis=0).T
    some = pixels.clip(1)
    return Calibration(
        ranks=(np.bincount(ranks, minlength=sample_bits.shape[1] + 1) / len(ranks)).tolist(),
        expected_error=float(np.abs(probabilities - correct).sum() / pixels.sum()),
        reliability=[
            Reliability(*map(float, row))
            for row in zip(probabilities / some, correct / some, pixels / pixels.sum(), strict=True)
        ],
        coverage=of_truth.mean(axis=0).tolist(),
        sample_coverage=of_samples.mean(axis=0).tolist(),
    )
