"""Calibration of samples, on arrays whose answers can be counted, and on samples that are draws of the truth's law."""

import numpy as np
import pytest

from coltran_jax.evaluation import calibration
from coltran_jax.sampling.sampler import Scores


def test_reliability_is_counted_by_range_of_probability():
    probabilities = np.array([[[0.01, 0.5], [0.5, 1.0]], [[0.99, 0.2], [0.2, 0.2]]], np.float32)
    correct = np.array([[[True, True], [False, True]], [[False, True], [False, False]]])
    counts = calibration.reliability_counts(Scores(None, probabilities, correct))
    assert counts.shape == (2, 15, 3)
    np.testing.assert_allclose(counts[0, 7], [2, 1.0, 1])
    np.testing.assert_allclose(counts[0, 14], [1, 1.0, 1])
    np.testing.assert_allclose(counts[1, 3], [3, 0.6, 1], rtol=1e-6)
    found = calibration.calibration_of(np.zeros(2), np.ones((2, 1)), counts, np.ones((2, 1)), np.ones((2, 0)))
    # Of eight pixels: 0.01 against 1; 1.0 of two against 1; 0.6 of three against 1; 1.99 of two against 1.
    assert found.expected_error == pytest.approx((0.99 + 0 + 0.4 + 0.99) / 8)
    assert sum(own.share for own in found.reliability) == pytest.approx(1)
    assert found.sample_coverage == []


def test_ranks_are_counted_from_the_most_probable():
    samples = np.array([[3.0, 4, 5], [3, 4, 5], [3, 4, 5], [3, 4, 5]])
    found = calibration.calibration_of(
        np.array([1.0, 3.5, 9, 9]), samples, np.ones((4, 15, 3)), np.ones((4, 3)), np.ones((4, 2))
    )
    assert found.ranks == [0.25, 0.25, 0, 0.5]


def test_coverage_grows_with_samples():
    samples = np.array([[[[1, 2]], [[1, 3]], [[4, 2]]]])
    of_truth, of_samples = calibration.coverage(samples, np.array([[[4, 3]]]))
    np.testing.assert_allclose(of_truth, [[0, 0.5, 1]])
    # One other has a half of each sample; two others have all of the first's, and a half of the others'.
    np.testing.assert_allclose(of_samples, [[(0.5 + 0.5 + 0.5) / 3, (1 + 0.5 + 0.5) / 3]])


def test_draws_of_the_truths_own_law_are_calibrated():
    rng = np.random.default_rng(0)
    law = np.array([0.6, 0.3, 0.1])
    truth = rng.choice(3, (400, 8, 8), p=law)
    samples = rng.choice(3, (400, 3, 8, 8), p=law)
    bits = -np.log2(law)
    scores = Scores(None, np.full(truth.shape, 0.6, np.float32), truth == 0)
    found = calibration.calibration_of(
        bits[truth].sum((1, 2)),
        bits[samples].sum((2, 3)),
        calibration.reliability_counts(scores),
        *calibration.coverage(samples, truth),
    )
    assert found.ranks == pytest.approx([0.25] * 4, abs=0.07)
    assert found.expected_error < 0.01
    assert found.coverage[:2] == pytest.approx(found.sample_coverage, abs=0.01)
