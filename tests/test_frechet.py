"""The Fréchet distance, and the statistics it is made of."""

import functools

import numpy as np
import pytest
from helpers import import_torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from coltran_jax.errors import StatisticsError
from coltran_jax.evaluation import frechet
from coltran_jax.evaluation.frechet import Statistics, frechet_distance


def gaussian(mean, covariance) -> Statistics:
    return Statistics(np.asarray(mean, np.float64), np.asarray(covariance, np.float64), 10, {}, np.zeros((0, 0)))


def test_along_axes_it_is_that_of_each_axis():
    one, other = gaussian([0, 1, 2], np.diag([1, 4, 9])), gaussian([3, 1, 0], np.diag([4, 1, 9]))
    # Per axis (m1 - m2)^2 + (s1 - s2)^2.
    assert frechet_distance(one, other) == pytest.approx(9 + 1 + 0 + 1 + 4 + 0, rel=1e-12)


@given(st.integers(0, 10**6), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_closed_forms(seed, scale):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((40, 12)) @ rng.standard_normal((12, 12))
    own = Statistics.of(features)
    total = np.trace(own.covariance)
    # Roots of eigenvalues near zero are known to the root of the precision only.
    near = functools.partial(pytest.approx, rel=1e-9, abs=3e-8 * total)
    assert frechet_distance(own, own) == near(0)
    moved = Statistics.of(features + np.arange(12))
    assert frechet_distance(own, moved) == near((np.arange(12) ** 2).sum())
    larger = gaussian(own.mean, scale**2 * own.covariance)
    assert frechet_distance(own, larger) == near((scale - 1) ** 2 * total)
    # The same turn of both changes nothing.
    turn = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    other = rng.standard_normal((40, 12))
    expected = frechet_distance(own, Statistics.of(other))
    assert frechet_distance(Statistics.of(features @ turn), Statistics.of(other @ turn)) == near(expected)
    assert frechet_distance(Statistics.of(other), own) == near(expected)


def test_covariances_without_full_rank():
    # Fewer images than features, on planes that have nothing in common.
    rng = np.random.default_rng(0)
    left, right = np.zeros((2, 6, 20))
    left[:, :5], right[:, 10:15] = rng.standard_normal((2, 6, 5))
    one, other = Statistics.of(left), Statistics.of(right)
    expected = ((one.mean - other.mean) ** 2).sum() + np.trace(one.covariance) + np.trace(other.covariance)
    # Rounding of the root of what should be zero is the root of rounding.
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)


def features_of_two_sets(dimensions=64):
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((dimensions, dimensions))
    one = rng.standard_normal((500, dimensions)) @ mix
    return one.astype(np.float32), (rng.standard_normal((400, dimensions)) @ (mix + 0.3) + 0.2).astype(np.float32)


def test_it_equals_a_root_of_the_product_of_covariances():
    linalg = pytest.importorskip("scipy.linalg")
    one, other = (Statistics.of(x) for x in features_of_two_sets())
    root = linalg.sqrtm(one.covariance @ other.covariance).real
    expected = ((one.mean - other.mean) ** 2).sum() + np.trace(one.covariance + other.covariance - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)


def test_it_equals_torchmetrics():
    import_torchvision()
    fid = pytest.importorskip("torchmetrics.image.fid")
    import torch

    one, other = features_of_two_sets()
    statistics = [Statistics.of(one), Statistics.of(other)]
    args = [torch.from_numpy(x) for own in statistics for x in (own.mean, own.covariance)]
    assert frechet_distance(*statistics) == pytest.approx(float(fid._compute_fid(*args)), rel=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_equals_torch_fidelity():
    import_torchvision()
    pytest.importorskip("torch_fidelity")
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    one, other = features_of_two_sets()
    expected = fid_statistics_to_metric(
        *(fid_features_to_statistics(torch.from_numpy(x)) for x in (one, other)), verbose=False
    )
    found = frechet_distance(Statistics.of(one), Statistics.of(other))
    assert found == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)


def test_halves_differ_by_chance_alone():
    rng = np.random.default_rng(0)
    near, far = (frechet_distance(*frechet.halves(rng.standard_normal((count, 4)))) for count in (2000, 41))
    assert 0 < near < 0.05
    assert far > near


def test_statistics_are_kept_and_only_used_for_what_they_are_of(tmp_path):
    path = tmp_path / "new" / "statistics.npz"
    own = Statistics.of(features_of_two_sets()[0], {"features": "one network", "crop": "centre square"})
    own.save(path)
    found = frechet.load(path, {"features": "one network"})
    np.testing.assert_array_equal(found.covariance, own.covariance)
    np.testing.assert_array_equal(found.features, own.features)
    assert (found.count, found.origin) == (500, own.origin)
    with pytest.raises(StatisticsError, match="with features 'one network', expected 'another'"):
        frechet.load(path, {"features": "another"})
    np.savez(path, mean=own.mean, covariance=own.covariance, count=500, origin="{}")
    with pytest.raises(StatisticsError, match="of an earlier version, without features; remove it"):
        frechet.load(path, {})
    own.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StatisticsError, match="damaged"):
        frechet.load(path, {})
    frechet.check_count(4)
    with pytest.raises(StatisticsError, match="3 images, distances between sets take at least 4"):
        frechet.check_count(3)
