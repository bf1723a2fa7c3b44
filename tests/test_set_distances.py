"""Distances between sets of features, against values counted by hand and against the libraries that have them."""

import numpy as np
import pytest
from helpers import import_torchvision

from coltran_jax.evaluation import set_distances
from coltran_jax.evaluation.frechet import Statistics


def sets(count=60, dimensions=8, shift=0.5):
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, count, dimensions)).astype(np.float32)
    return Statistics.of(one), Statistics.of(other + np.float32(shift))


def test_kernel_distance_counted_by_hand():
    # Of two and two points in one dimension: kernels of different points within each set, and of all pairs between.
    one, other = Statistics.of(np.array([[1.0], [2.0]])), Statistics.of(np.array([[3.0], [-1.0]]))
    expected = 3**3 + (-2) ** 3 - 2 * (4**3 + 0**3 + 7**3 + (-1) ** 3) / 4
    assert set_distances.kernel_distance(one, other) == pytest.approx(1000 * expected)


def test_kernel_distance_is_unbiased():
    rng = np.random.default_rng(0)
    found = [
        set_distances.kernel_distance(*(Statistics.of(x) for x in rng.standard_normal((2, 40, 6)))) for _ in range(200)
    ]
    # The biased estimate would be near 1000 * 2 / 40 times the spread of the kernel, far above three standard errors.
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(200)
    assert min(found) < 0


def test_gaussian_distance_counted_by_hand():
    # After scaling: (1, 0) twice against (0, 1) twice, at squared distance 2.
    one, other = Statistics.of(np.array([[2.0, 0], [5, 0]])), Statistics.of(np.array([[0, 1.0], [0, 3]]))
    assert set_distances.gaussian_distance(one, other) == pytest.approx(1000 * (2 - 2 * np.exp(-2 / 200)))
    assert set_distances.gaussian_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_precision_and_recall_counted_by_hand():
    # Real points on a line reach 3 from the ends and 2 from the middle ones; those made stand together beyond.
    real = Statistics.of(np.array([[0.0], [1], [2], [3]]))
    made = Statistics.of(np.array([[5.9], [6], [6.05], [6.5]]))
    assert set_distances.precision(made, real) == 0.5
    assert set_distances.recall(made, real) == 0
    assert set_distances.precision(real, real) == set_distances.recall(real, real) == 1


def test_samples_without_variety_have_no_recall():
    one, other = sets(shift=0)
    narrow = Statistics.of(one.features * np.float32(0.1))
    assert set_distances.precision(narrow, other) == 1
    assert set_distances.recall(narrow, other) < 0.1


@pytest.mark.filterwarnings("ignore")
def test_they_equal_torch_fidelity():
    import_torchvision()
    pytest.importorskip("torch_fidelity")
    import torch
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    one, other = sets()
    features = [torch.from_numpy(own.features) for own in (one, other)]
    options = {"kid_subsets": 1, "kid_subset_size": 60, "verbose": False}
    kid = kid_features_to_metric(*features, **options)["kernel_inception_distance_mean"]
    assert set_distances.kernel_distance(one, other) == pytest.approx(1000 * kid, rel=1e-4)
    found = prc_features_to_metric(*features, prc_neighborhood=3, verbose=False)
    assert set_distances.precision(one, other) == pytest.approx(found["precision"])
    assert set_distances.recall(one, other) == pytest.approx(found["recall"])


def test_it_equals_torchmetrics():
    import_torchvision()
    kid = pytest.importorskip("torchmetrics.image.kid")
    import torch

    one, other = sets()
    expected = kid.poly_mmd(*(torch.from_numpy(own.features) for own in (one, other)))
    assert set_distances.kernel_distance(one, other) == pytest.approx(1000 * float(expected), rel=1e-4)
