"""The three networks together, against golden/pipeline."""

import jax
import numpy as np
import pytest
from helpers import GOLDEN, golden, moved_parameters, tiny_upsampler
from PIL import Image

import coltran_jax
from coltran_jax import config as configs
from coltran_jax.checkpoints.bundles import Bundle, load_bundle
from coltran_jax.images import arrays
from coltran_jax.networks.registry import build
from coltran_jax.networks.upsampler import upsample
from coltran_jax.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipeline(bundle_path):
    return coltran_jax.load_pipeline(bundle_path, devices=jax.devices()[:1])


def image(tag):
    return np.asarray(Image.open(GOLDEN / "pipeline" / f"{tag}.png"))


@pytest.mark.parametrize("tag", ["rgb", "gray"])
def test_explicit_noise_gives_the_releases_images(pipeline, tag):
    expected = golden("pipeline/expected")
    draws = [np.random.RandomState(seed).gumbel(size=512) for seed in expected[f"{tag}/noise_seed"].ravel()]
    noise = np.array(draws, np.float32).reshape(1, 1, 64, 64, 512)
    (result,) = pipeline.colorize([image(tag)], noise=noise, square=True, as_released=True)
    np.testing.assert_array_equal(result.gray, expected[f"{tag}/gray256"])
    np.testing.assert_array_equal(result.coarse[0], expected[f"{tag}/gumbel_coarse"])
    np.testing.assert_array_equal(result.fine[0], expected[f"{tag}/fine64"])
    np.testing.assert_array_equal(result.final[0], expected[f"{tag}/final256"])
    np.testing.assert_array_equal(result.images, result.final)


@pytest.fixture(scope="module")
def tiny(tiny_bundle_path):
    return coltran_jax.load_pipeline(tiny_bundle_path, devices=jax.devices()[:1])


SIZES = [(320, 480, 3), (1, 1, 1), (37, 81, 4), (300, 20, 2), (9, 700, 3)]


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, np.uint8) for size in SIZES]


@pytest.fixture(scope="module")
def together(tiny, images):
    return tiny.colorize(images, samples=3, seed=5)


def same(one, other):
    for a, b in zip(one, other, strict=True):
        for field in ("images", "coarse", "fine", "final"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
        np.testing.assert_allclose(a.log_likelihood_bits, b.log_likelihood_bits, rtol=1e-5)


def test_results_have_the_images_sizes_luminance_and_alpha(images, together):
    for before, result in zip(images, together, strict=True):
        assert result.images.dtype == np.uint8
        assert result.images.shape == (3, *before.shape[:2], 3 + (before.shape[2] % 2 == 0))
        colors = before[..., :3] if before.shape[2] > 2 else before[..., :1]
        difference = arrays.luminance(result.images[0][..., :3]) - arrays.luminance(colors)
        assert np.abs(difference).max() <= 0.501
        if before.shape[2] % 2 == 0:
            np.testing.assert_array_equal(result.images[1][..., 3], before[..., -1])
        assert result.log_likelihood_bits.shape == (3,)
        assert (result.log_likelihood_bits < 0).all()
        assert result.max_probability.shape == result.entropy_bits.shape == (3, 16, 16)
        assert len({sample.tobytes() for sample in result.coarse}) == 3


@pytest.mark.parametrize("batch_size", [2, 6, 40])
def test_batch_size_does_not_matter(tiny, images, together, batch_size):
    same(tiny.colorize(images, samples=3, seed=5, batch_size=batch_size), together)


def test_neighbours_do_not_matter(tiny, images, together):
    same(tiny.colorize(images[2:3], samples=3, seed=5), together[2:3])
    same(tiny.colorize(images[::-1], samples=3, seed=5), together[::-1])


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_number_of_devices_does_not_matter(tiny_bundle_path, images, together, count):
    spread = coltran_jax.load_pipeline(tiny_bundle_path, devices=jax.devices()[:count])
    same(spread.colorize(images, samples=3, seed=5), together)
    # One image, its samples on several devices.
    same(spread.colorize(images[:1], samples=3, seed=5), together[:1])


def test_square_takes_the_centre(tiny, images):
    (result,) = tiny.colorize(images[:1], square=True)
    (cropped,) = tiny.colorize([arrays.center_square(images[0])], square=True)
    assert result.images.shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(result.images, cropped.images)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"images": [np.zeros((4, 4, 3))]}, "image 0 is float64"),
        ({"images": [np.zeros((4, 4, 5), np.uint8)]}, r"image 0 is uint8 \(4, 4, 5\)"),
        ({"images": [np.zeros((0, 4), np.uint8)]}, "image 0 is"),
        ({"samples": 0}, "samples must be above 0, got 0"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"batch_size": -1}, "batch_size must be above 0, got -1"),
        ({"noise": np.zeros((1, 1, 2, 2, 512))}, "noise is"),
    ],
)
def test_impossible_arguments_are_named(tiny, kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny.colorize(**{"images": [np.zeros((4, 4, 3), np.uint8)], **kwargs})


def test_networks_that_do_not_fit_together_are_refused(tiny_bundle_path):
    bundle = load_bundle(tiny_bundle_path)
    swapped = dict(bundle.configs, spatial_upsampler=bundle.configs["color_upsampler"])
    other = dict(bundle.configs, color_upsampler=bundle.configs["spatial_upsampler"])
    with pytest.raises(ValueError, match=r"the color upsampler's resolution is \(32, 32\)"):
        Pipeline(Bundle(other, bundle.params))
    Pipeline(Bundle(swapped, {**bundle.params, "spatial_upsampler": bundle.params["color_upsampler"]}))


def test_one_upsampler_may_do_both_steps(tiny_bundle_path, images):
    bundle = load_bundle(tiny_bundle_path)
    config = tiny_upsampler(configs.JointUpsamplerConfig, (32, 32))
    params = {"colorizer": bundle.params["colorizer"], "joint_upsampler": moved_parameters(config)}
    joint = Bundle({"colorizer": bundle.configs["colorizer"], "joint_upsampler": config}, params)
    (result,) = Pipeline(joint, devices=jax.devices()[:1]).colorize(images[:1], samples=2)
    assert result.fine is None
    values = arrays.enlarge(result.coarse // 32, 2)
    gray = np.repeat(result.gray[None], 2, axis=0)
    expected = upsample(build(config), params["joint_upsampler"], gray, values, chunk=1)
    np.testing.assert_array_equal(result.final, expected)
    with pytest.raises(ValueError, match="has a joint_upsampler and color_upsampler, spatial_upsampler"):
        Pipeline(Bundle({**bundle.configs, **joint.configs}, {**bundle.params, **params}))
    with pytest.raises(ValueError, match="has joint_upsampler, lacks colorizer"):
        Pipeline(Bundle({"joint_upsampler": config}, params))


def test_no_images_no_results(tiny):
    assert tiny.colorize([]) == []
