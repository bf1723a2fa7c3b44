"""The bundle that comes with the package does what its card, docs/mini.md, says."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from coltran_jax.checkpoints.bundles import load_bundle
from coltran_jax.images import arrays
from coltran_jax.networks.chain import PUBLISHED
from coltran_jax.networks.registry import build
from coltran_jax.nn.compute import Compute
from coltran_jax.pipeline import MINI, Pipeline
from coltran_jax.sampling import noise as noises
from coltran_jax.sampling import sampler
from coltran_jax.training import state as states
from coltran_jax.training.config import TrainConfig

CROPS = ("beach", "forest", "sky")


@pytest.fixture(scope="module")
def bundle():
    return load_bundle(MINI, required=list(PUBLISHED))


def test_it_is_small_and_has_the_published_geometry(bundle):
    assert MINI.stat().st_size <= 25e6
    assert [bundle.configs[name].resolution for name in PUBLISHED] == [(64, 64), (64, 64), (256, 256)]


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("network", PUBLISHED)
def test_held_out_bits_are_those_of_the_card(bundle, network):
    card = (ROOT / "docs" / "mini.md").read_text()
    rows = [re.search(rf"^\| {crop} \|(.*)\|$", card, re.MULTILINE).group(1).split("|") for crop in CROPS]
    expected = [float(row[list(PUBLISHED).index(network)]) for row in rows]
    config = TrainConfig(network, bundle.configs[network])
    evaluate = jax.jit(lambda params, batch: states.evaluation_step(config, params, batch))
    found = []
    for crop in CROPS:
        image = np.asarray(Image.open(ROOT / "tests" / "holdout" / f"{crop}.png"))
        sums, _ = evaluate(bundle.params[network], {"images": image[None], "mask": np.ones(1, np.float32)})
        found.append(float(sums["bits"]))
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(("decoder", "backend"), [("fixed_point", "xla"), ("sequential", "pallas_interpreted")])
def test_bfloat16_draws_from_the_distribution_of_float32(bundle, decoder, backend):
    images = np.stack([np.asarray(Image.open(ROOT / "tests" / "holdout" / f"{crop}.png")) for crop in CROPS])
    small = np.stack([arrays.area_resize(image, 64, 64) for image in images])
    gray, params = arrays.gray_from_rgb(small), bundle.params["colorizer"]
    full = build(bundle.configs["colorizer"])
    half = build(bundle.configs["colorizer"], Compute(jnp.bfloat16, backend=backend))
    noise = noises.SeededNoise(noises.image_keys(0, gray), np.zeros((3, 1), int))
    drawn = sampler.sample(half, params, sampler.encode(half, params, gray), noise, decoder=decoder, window=16)
    for coarse in (np.asarray(arrays.coarse_from_rgb(small), np.int32), drawn.coarse[:, 0]):
        scores = [sampler.score(model, params, gray, coarse) for model in (full, half)]
        expected, found = (each.log_probability_bits.sum(axis=(1, 2)) for each in scores)
        np.testing.assert_allclose(found, expected, rtol=5e-3)
    # The sampler's own account of what it drew.
    np.testing.assert_allclose(drawn.log_likelihood_bits[:, 0], expected, rtol=5e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_it_colours_the_example_the_same_way_again(bundle):
    image = np.asarray(Image.open(ROOT / "examples" / "polemonium.jpg"))
    gray = np.rint(arrays.luminance(image[..., :3])).astype(np.uint8)[..., None]
    pipeline = Pipeline(bundle, devices=jax.devices()[:1])
    first, again, other = (pipeline.colorize([gray], seed=seed)[0].images[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_allclose(arrays.luminance(first), gray[..., 0], atol=2)
    spread = first.max(axis=-1).astype(int) - first.min(axis=-1)
    assert spread.mean() > 10, "a colour image"
