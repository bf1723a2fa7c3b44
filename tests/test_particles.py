"""Known colours: what is sampled is the posterior, which a tiny network lets one enumerate."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import teacher_forced, tiny_colorizer, variant

from coltran_jax.networks.registry import build, initialize
from coltran_jax.nn.compute import Compute
from coltran_jax.sampling import noise as noises
from coltran_jax.sampling import particles, sampler
from coltran_jax.sampling.known import KnownCoarse

HEIGHT, WIDTH, COLORS = 2, 3, 4


def sample(config, params, gray, num_samples, *, seed=0, backend="xla", **kwargs):
    model = build(config, Compute(backend=backend))
    numbers = np.tile(np.arange(num_samples), (len(gray), 1))
    noise = noises.SeededNoise(noises.image_keys(seed, gray), numbers)
    return sampler.sample(model, params, sampler.encode(model, params, gray), noise, **kwargs)


@pytest.fixture(scope="module")
def enumerated():
    """A network over 2x3 pixels and four colours, and the log-probability of all 4,096 images."""
    config = tiny_colorizer((HEIGHT, WIDTH))
    # Such weights that a pixel depends on those before it, and that other colours are never drawn.
    rng = np.random.default_rng(1)
    fresh = jax.jit(lambda key: initialize(config, key))(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), fresh)
    rng = np.random.default_rng(5)
    embedding = 10 * rng.standard_normal((512, 12), np.float32)
    head = 2 * np.random.default_rng(7).standard_normal((12, 512)).astype(np.float32)
    bias = np.where(np.arange(512) < COLORS, 0, -1e9).astype(np.float32)
    params = {**params, "pixel_embedding": {"kernel": embedding}, "head": {"kernel": head, "bias": bias}}
    gray = np.random.default_rng(2).integers(0, 256, (1, HEIGHT, WIDTH, 1), np.uint8)
    images = np.array(list(itertools.product(range(COLORS), repeat=HEIGHT * WIDTH)), np.int32)
    images = images.reshape(-1, HEIGHT, WIDTH)
    logits, _ = teacher_forced(config, params, np.repeat(gray, len(images), axis=0), images)
    log_probabilities = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), images[..., None], -1)
    return config, jax.tree.map(jnp.asarray, params), gray, images, log_probabilities[..., 0].sum((1, 2))


def shares(images, weights=None):
    """How often each pixel has each colour: images (N, H, W) -> (H, W, colours)."""
    return np.average(images[..., None] == np.arange(COLORS), axis=0, weights=weights)


@pytest.mark.parametrize(
    ("decoder", "guided"),
    [
        ("sequential", False),
        pytest.param("sequential", True, marks=pytest.mark.slow),
        pytest.param("fixed_point", True, marks=pytest.mark.slow),
    ],
)
def test_samples_with_known_colours_converge_to_the_enumerated_posterior(enumerated, decoder, guided):
    config, params, gray, images, log_probabilities = enumerated
    # The last pixel, which bears on all those that are drawn before it, and one of the first row.
    known = np.array([[[-1, 2, -1], [-1, -1, 1]]], np.int32)
    joint = np.exp(log_probabilities) * ((images == known) | (known < 0)).all((1, 2))
    expected, evidence, errors = shares(images, joint), joint.sum(), {}
    # A guide that is wrong costs particles and nothing else.
    chroma = np.random.default_rng(3).normal(0, 60, (*known.shape, 3)).astype(np.float32)
    given = KnownCoarse(known, *((chroma, np.full(known.shape, 0.2, np.float32)) if guided else ()))
    for count in (1, 16):
        found = sample(config, params, gray, 1000, known=given, num_particles=count, decoder=decoder)
        coarse = np.asarray(found.coarse[0])
        assert (coarse[:, known[0] >= 0] == known[known >= 0]).all()
        errors[count] = np.abs(shares(coarse) - expected).max()
        # The estimate of the evidence is unbiased, however few the particles.
        estimates = 2.0 ** np.asarray(found.log_evidence_bits[0])
        assert abs(estimates.mean() - evidence) < 4 * estimates.std() / np.sqrt(len(estimates))
        index = (coarse.reshape(-1, 6) @ COLORS ** np.arange(6)[::-1]).astype(int)
        np.testing.assert_allclose(found.log_likelihood_bits[0], log_probabilities[index] / np.log(2), rtol=1e-3)
    assert errors[1] > 0.1
    assert errors[16] < 0.05


def test_without_known_colours_nothing_changes():
    config, params, gray, _ = variant("default")
    plain = sample(config, params, gray, 2)
    unknown = np.full(gray.shape[:3], -1, np.int32)
    # Of the two images one has a known pixel, where the sample has another colour.
    unknown[1, 3, 4] = (int(plain.coarse[1, 0, 3, 4]) + 1) % 512
    found = sample(config, params, gray, 2, known=KnownCoarse(unknown), num_particles=4)
    np.testing.assert_array_equal(found.coarse[0], plain.coarse[0])
    np.testing.assert_allclose(found.log_probability_bits[0], plain.log_probability_bits[0], atol=1e-4)
    assert (np.asarray(found.effective_particles[0]) == 4).all()
    assert (np.asarray(found.log_evidence_bits[0]) == 0).all()
    assert (np.asarray(found.coarse[1])[:, 3, 4] == unknown[1, 3, 4]).all()
    assert (np.asarray(found.effective_particles[1]) < 4).all()


@pytest.mark.parametrize(
    ("backend", "options"), [("xla", {"decoder": "fixed_point", "window": 3}), ("pallas_interpreted", {})]
)
def test_known_colours_are_the_same_in_every_decoder(backend, options):
    config, params, gray, colors = variant("default")
    known = np.where(np.random.default_rng(0).random(colors.shape) < 0.1, colors, -1).astype(np.int32)
    guided = KnownCoarse.stacked(list(map(KnownCoarse.guided, known, gray)))
    arguments = {"known": guided, "num_particles": 4, "temperature": 0.7, "min_p": 0.2}
    expected = sample(config, params, gray, 2, **arguments)
    found = sample(config, params, gray, 2, backend=backend, **arguments, **options)
    np.testing.assert_array_equal(found.coarse, expected.coarse)
    np.testing.assert_allclose(found.log_evidence_bits, expected.log_evidence_bits, atol=1e-2)
    np.testing.assert_allclose(found.effective_particles, expected.effective_particles, rtol=1e-2)


def test_systematic_resampling_keeps_each_particle_by_its_share():
    weights = np.array([[0.1, 0.0, 0.45, 0.45], [0.25, 0.25, 0.25, 0.25]])
    for uniform in (0.0, 0.3, 0.999):
        found = np.asarray(particles.systematic(jnp.log(weights), jnp.full(2, uniform)))
        counts = np.stack([np.bincount(row, minlength=4) for row in found])
        assert (np.abs(counts - 4 * weights) < 1).all()
        assert (found[1] == np.arange(4)).all()
    assert particles.effective_number(jnp.log(weights)).tolist() == pytest.approx([1 / 0.415, 4])
    assert np.asarray(particles.chosen(jnp.log(weights), jnp.array([0.05, 0.6]))).tolist() == [0, 2]


def test_a_lineage_is_traced_back_through_all_resampling():
    ancestors = jnp.array([[[1, 1, 2]], [[0, 0, 1]], [[0, 1, 2]]])
    assert np.asarray(particles.lineage(ancestors, jnp.array([2]))).ravel().tolist() == [1, 1, 2]
    assert np.asarray(particles.lineage(ancestors, jnp.array([0]))).ravel().tolist() == [1, 0, 0]


def test_noise_that_is_given_is_of_one_particle():
    for noise in (noises.NoNoise(np.zeros((1, 1), int)), noises.ExplicitNoise(np.zeros((1, 1, 2, 3, 512), np.float32))):
        assert noise.particles(1) is noise
        with pytest.raises(ValueError, match="one particle of each sample, got 2"):
            noise.particles(2)
