"""The sampler against the release, against the teacher-forced network, and against a naive sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    GOLDEN_COLORIZERS,
    PER_ROW,
    VARIANTS,
    golden_network,
    moved_parameters,
    teacher_forced,
    tiny_colorizer,
    variant,
)
from naive_sampler import naive_sample

from coltran_jax.images import arrays
from coltran_jax.networks.registry import build
from coltran_jax.nn.compute import Compute
from coltran_jax.nn.parameters import in_compute_dtype
from coltran_jax.sampling import content, sampler
from coltran_jax.sampling import noise as noises


def sample(config, params, gray, noise, backend="xla", **kwargs):
    model = build(config, Compute(backend=backend))
    return sampler.sample(model, params, sampler.encode(model, params, gray), noise, **kwargs)


def seeded(gray, num_samples, seed=0):
    numbers = np.tile(np.arange(num_samples), (len(gray), 1))
    return noises.SeededNoise(noises.image_keys(seed, gray), numbers)


def log_probabilities_bits(config, params, gray, coarse, per_row_norms):
    logits, _ = teacher_forced(config, params, gray, coarse, per_row_norms=per_row_norms)
    return np.asarray(jax.nn.log_softmax(logits)) / np.log(2)


@pytest.mark.parametrize("name", GOLDEN_COLORIZERS)
def test_greedy_images_equal_the_release(name):
    config, params, values = golden_network(f"core_{name}")
    gray = values["gray"]
    result = sample(config, params, gray, noises.NoNoise(np.zeros((len(gray), 1), int)), as_released=True)
    coarse = np.asarray(result.coarse[:, 0])
    np.testing.assert_array_equal(arrays.rgb_from_coarse(coarse), values["argmax_image"])
    probabilities = 2 ** log_probabilities_bits(config, params, gray, coarse, per_row_norms=True)
    for row, key in ((0, "argmax_proba_first_row"), (-1, "argmax_proba_last_row")):
        np.testing.assert_allclose(probabilities[:, row], values[key], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "as_released"), [(name, False) for name in VARIANTS] + [(name, True) for name in PER_ROW]
)
def test_probabilities_equal_those_of_the_teacher_forced_network(name, as_released):
    config, params, gray, _ = variant(name)
    result = sample(config, params, gray, seeded(gray, 2), as_released=as_released)
    height, width = config.resolution
    coarse = np.asarray(result.coarse).reshape(-1, height, width)
    # as_released in the sampler is per_row_norms in the network: its likelihood is that of how it sampled.
    bits = log_probabilities_bits(config, params, np.repeat(gray, 2, axis=0), coarse, as_released)
    chosen = np.take_along_axis(bits, coarse[..., None], -1)[..., 0]
    np.testing.assert_allclose(np.asarray(result.log_probability_bits).reshape(chosen.shape), chosen, atol=1e-4)
    maximum = np.asarray(result.max_probability).reshape(chosen.shape)
    np.testing.assert_allclose(maximum, 2 ** bits.max(-1), atol=1e-4)
    entropy = -(2**bits * bits).sum(-1)
    np.testing.assert_allclose(np.asarray(result.entropy_bits).reshape(chosen.shape), entropy, atol=1e-3)
    total = chosen.reshape(len(gray), 2, -1).sum(-1)
    np.testing.assert_allclose(result.log_likelihood_bits, total, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "as_released"), [("default", False), ("default", True), ("decoder_only_no_skip_cs", False)]
)
def test_images_equal_those_of_the_naive_sampler(name, as_released):
    config, params, gray, _ = variant(name)
    rng = np.random.default_rng(3)
    noise = rng.gumbel(size=(len(gray), 1, *config.resolution, 512)).astype(np.float32)
    result = sample(config, params, gray, noises.ExplicitNoise(noise), temperature=0.7, as_released=as_released)
    coarse, bits = naive_sample(config, params, gray, noise[:, 0], temperature=0.7, per_row_norms=as_released)
    np.testing.assert_array_equal(result.coarse[:, 0], coarse)
    np.testing.assert_allclose(result.log_probability_bits[:, 0], bits, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "as_released", "window"),
    [("default", False, 3), ("default", True, 5), ("default", False, 99), ("decoder_only_no_skip_cs", False, 1)],
)
def test_rows_as_fixed_points_are_the_sequential_ones(name, as_released, window):
    config, params, gray, _ = variant(name)
    noise, options = seeded(gray, 3), {"temperature": 0.7, "as_released": as_released}
    expected = sample(config, params, gray, noise, **options)
    found = sample(config, params, gray, noise, decoder="fixed_point", window=window, **options)
    np.testing.assert_array_equal(found.coarse, expected.coarse)
    for field in ("log_probability_bits", "max_probability", "entropy_bits"):
        np.testing.assert_allclose(getattr(found, field), getattr(expected, field), atol=1e-4)
    width = config.resolution[1]
    assert (np.asarray(expected.num_iterations) == width).all()
    iterations = np.asarray(found.num_iterations)
    assert iterations.shape == (len(gray), 3, config.resolution[0])
    # Each iteration gets a pixel right at least, and no more than a window.
    assert -(-width // window) <= iterations.min() <= iterations.max() <= width


def test_guided_images_are_those_of_the_guided_distribution():
    config, params, gray, _ = variant("default")
    rng = np.random.default_rng(5)
    noise = rng.gumbel(size=(len(gray), 2, *config.resolution, 512)).astype(np.float32)
    table = np.log(rng.dirichlet(np.ones(512), 256)).astype(np.float32)
    model = build(config)
    guide = content.tilt(model, params, sampler.encode(model, params, gray), gray, table, 0.6)
    options = {"content": guide, "temperature": 0.7, "min_p": 0.01}
    for decoder in ("sequential", "fixed_point"):
        result = sample(config, params, gray, noises.ExplicitNoise(noise), decoder=decoder, **options)
        coarse = np.asarray(result.coarse).reshape(-1, *config.resolution)
        logits, parallel = teacher_forced(config, params, np.repeat(gray, 2, axis=0), coarse)
        by_content = np.asarray(jax.nn.log_softmax(parallel)) - 0.7 * table[np.repeat(gray, 2, axis=0)[..., 0]]
        guided = np.asarray(logits) / 0.7 + 0.6 * by_content
        # The limit is on probabilities at temperature one.
        at_one = 0.7 * guided
        allowed = at_one >= at_one.max(axis=-1, keepdims=True) + np.log(0.01)
        drawn = np.argmax(np.where(allowed, guided + noise.reshape(guided.shape), -np.inf), axis=-1)
        np.testing.assert_array_equal(coarse, drawn)
        own = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), coarse[..., None], -1)[..., 0] / np.log(2)
        np.testing.assert_allclose(np.asarray(result.log_probability_bits).reshape(own.shape), own, atol=1e-4)
    unguided = sample(config, params, gray, noises.ExplicitNoise(noise), temperature=0.7, min_p=0.01)
    assert (np.asarray(unguided.coarse) != np.asarray(result.coarse)).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_samples", "options"),
    [(name, 1, {}) for name in ("default", "baseline_addition", "catt_only_v", "no_cmlp", "scale_only")]
    # More images than a tile of the kernel takes.
    + [("default", 20, {"as_released": True}), ("default", 1, {"decoder": "fixed_point", "window": 3})],
)
def test_kernels_draw_the_same_rows(name, num_samples, options):
    config, params, gray, _ = variant(name)
    noise, options = seeded(gray, num_samples), {"temperature": 0.7, **options}
    expected, found = (
        sample(config, params, gray, noise, backend=backend, **options) for backend in ("xla", "pallas_interpreted")
    )
    np.testing.assert_array_equal(found.coarse, expected.coarse)
    for field in ("log_probability_bits", "max_probability", "entropy_bits"):
        np.testing.assert_allclose(getattr(found, field), getattr(expected, field), atol=1e-4)


@pytest.mark.parametrize("truncation", [{"min_p": 0.3}, {"top_p": 0.5}], ids=str)
@pytest.mark.parametrize(("decoder", "backend"), [("fixed_point", "xla"), ("sequential", "pallas_interpreted")])
def test_every_decoder_draws_the_same_truncated_rows(decoder, backend, truncation):
    config, params, gray, _ = variant("default")
    noise, options = seeded(gray, 1), {"temperature": 0.7, **truncation}
    expected = sample(config, params, gray, noise, **options)
    found = sample(config, params, gray, noise, backend, decoder=decoder, **options)
    np.testing.assert_array_equal(found.coarse, expected.coarse)
    assert (expected.coarse != sample(config, params, gray, noise, temperature=0.7).coarse).any()


def test_ways_to_sample_differ():
    config, params, gray, _ = variant("default")
    results = [sample(config, params, gray, seeded(gray, 1), as_released=flag) for flag in (False, True)]
    assert (results[0].log_probability_bits != results[1].log_probability_bits).any()


def test_a_draw_belongs_to_seed_image_and_sample_alone():
    config = tiny_colorizer()
    params = moved_parameters(config)
    gray = np.random.default_rng(0).integers(0, 256, (3, *config.resolution, 1), np.uint8)
    together = sample(config, params, gray, seeded(gray, 4)).coarse
    alone = sample(config, params, gray[1:2], seeded(gray[1:2], 2)).coarse
    np.testing.assert_array_equal(together[1, :2], alone[0])
    third = noises.SeededNoise(noises.image_keys(0, gray[1:2]), np.array([[3]]))
    np.testing.assert_array_equal(sample(config, params, gray[1:2], third).coarse[0, 0], together[1, 3])
    images = [together[i, j] for i in range(3) for j in range(4)]
    images.append(sample(config, params, gray[:1], seeded(gray[:1], 1, seed=1)).coarse[0, 0])
    assert len({np.asarray(image).tobytes() for image in images}) == len(images)


def test_noise_differs_between_pixels_rows_and_samples():
    noise = seeded(np.zeros((1, 4, 4, 1), np.uint8), 2)
    rows = jnp.stack([noise.row(row, 4) for row in range(4)])
    assert len(np.unique(np.asarray(rows))) > 0.999 * rows.size
    assert abs(float(rows.mean()) - np.euler_gamma) < 0.02


def test_draws_follow_the_network():
    # All weights zero but the logits' bias: every pixel has the distribution that the bias says.
    config = tiny_colorizer(resolution=(8, 8))
    params = jax.tree.map(jnp.zeros_like, moved_parameters(config))
    weights = np.zeros(512, np.float32)
    weights[:4] = [0.5, 0.25, 0.125, 0.125]
    with np.errstate(divide="ignore"):
        params["head"]["bias"] = jnp.maximum(np.log(weights), -1e4)
    gray = np.zeros((1, 8, 8, 1), np.uint8)
    result = sample(config, params, gray, seeded(gray, 60))
    counts = np.bincount(np.asarray(result.coarse).ravel(), minlength=512)
    assert counts[4:].sum() == 0
    total = counts.sum()
    for color in range(4):
        deviation = np.sqrt(total * weights[color] * (1 - weights[color]))
        assert abs(counts[color] - total * weights[color]) < 4 * deviation
    np.testing.assert_allclose(result.entropy_bits, 1.75, atol=1e-4)
    np.testing.assert_allclose(result.max_probability, 0.5, atol=1e-4)
    # Of the colours at 1/2, 1/4, 1/8 and 1/8, the last two are below 0.3 times the first.
    truncated = sample(config, params, gray, seeded(gray, 60), min_p=0.3)
    share = np.bincount(np.asarray(truncated.coarse).ravel(), minlength=512) / total
    assert abs(share[0] - 2 / 3) < 4 * np.sqrt(2 / 9 / total)
    assert share[0] + share[1] == 1
    np.testing.assert_allclose(truncated.log_probability_bits, np.log2(weights[truncated.coarse]), atol=1e-4)
    # The lower the temperature, the more of the most probable colour: p ** (1 / T), normalised.
    cold = sample(config, params, gray, seeded(gray, 60), temperature=0.5)
    expected = 0.25 / (0.25 + 0.0625 + 2 * 0.015625)
    share = (np.asarray(cold.coarse) == 0).mean()
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / total)


def test_kernels_cast_ahead_change_nothing():
    config, params, *images = variant("default")
    gray, coarse = map(jnp.asarray, images)
    model, ahead = build(config, Compute(jnp.bfloat16)), in_compute_dtype(params, jnp.bfloat16)
    for expected, found in zip(*(model.apply({"params": p}, gray, coarse) for p in (params, ahead)), strict=True):
        np.testing.assert_array_equal(found, expected)
    sizes = {
        dtype: sum(x.size for x in jax.tree.leaves(ahead) if x.dtype == dtype) for dtype in ("float32", "bfloat16")
    }
    assert sizes["bfloat16"] > sizes["float32"] > 0


def test_bfloat16_samples_and_reports_in_float32():
    config, params, gray, _ = variant("default")
    model = build(config, Compute(jnp.bfloat16))
    result = sampler.sample(model, params, sampler.encode(model, params, gray), seeded(gray, 1))
    assert result.log_probability_bits.dtype == jnp.float32
    bits = log_probabilities_bits(config, params, gray, np.asarray(result.coarse[:, 0]), False)
    chosen = np.take_along_axis(bits, np.asarray(result.coarse[:, 0])[..., None], -1)
    np.testing.assert_allclose(result.log_likelihood_bits[:, 0], chosen.sum((1, 2, 3)), rtol=5e-3)
