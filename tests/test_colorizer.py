"""The colorizer against golden/core_*.npz, and what must hold in every variant."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import GOLDEN_COLORIZERS, PER_ROW, VARIANTS, golden, golden_network, tiny_colorizer, variant

from coltran_jax import config as configs
from coltran_jax.checkpoints import release
from coltran_jax.images import arrays
from coltran_jax.networks.registry import build, initialize, parameter_shapes
from coltran_jax.nn.compute import Compute

LN2 = np.log(2)


def bits(logits, colors):
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probabilities, colors[..., None], -1).mean() / LN2


def images(values):
    return {key: values[key] for key in ("rgb", "gray")}


@functools.partial(jax.jit, static_argnums=0)
def losses(model, params, values):
    colors = arrays.coarse_from_rgb(values["rgb"])
    logits, parallel = model.apply({"params": params}, values["gray"], colors)
    loss = bits(logits, colors)
    encoder_loss = None if parallel is None else bits(parallel, colors)
    return loss, encoder_loss, logits, parallel


@functools.cache
def computed(name):
    """What `losses` gives for a golden colorizer, and the gradients of its total loss: one program for both."""
    config, params, values = golden_network(f"core_{name}")
    model = build(config)

    def total(params):
        found = losses(model, params, images(values))
        loss, encoder_loss = found[:2]
        return 0.99 * loss + (0 if encoder_loss is None else 0.01 * encoder_loss), found

    (_, found), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return found, gradients


@pytest.mark.parametrize("name", GOLDEN_COLORIZERS)
def test_logits_and_losses(name):
    values = golden(f"core_{name}")
    loss, encoder_loss, logits, parallel = computed(name)[0]
    np.testing.assert_allclose(logits[: len(values["logits"])], values["logits"], atol=1e-4)
    np.testing.assert_allclose(loss, values["loss"], rtol=1e-5)
    total = 0.99 * loss
    if encoder_loss is not None:
        np.testing.assert_allclose(encoder_loss, values["encoder_loss"], rtol=1e-5)
        total += 0.01 * encoder_loss
    else:
        assert "encoder_loss" not in values
    np.testing.assert_allclose(total, values["total_loss"], rtol=1e-5)
    if "encoder_logits" in values:
        np.testing.assert_allclose(parallel, values["encoder_logits"], atol=1e-4)


def test_parallel_image():
    values, parallel = golden("core_default"), computed("default")[0][3]
    np.testing.assert_array_equal(arrays.rgb_from_coarse(np.asarray(parallel.argmax(-1))), values["parallel_image"])


@pytest.mark.parametrize("name", GOLDEN_COLORIZERS)
def test_gradient_norms(name):
    config, _, values = golden_network(f"core_{name}")
    gradients = release.variables_from_parameters(config, computed(name)[1])
    expected = {key.removeprefix("grad_norm/"): v for key, v in values.items() if key.startswith("grad_norm/")}
    canonical = release.canonical_names(list(expected))
    assert set(canonical.values()) <= set(gradients)
    # Terms cancel in the sum that is the gradient of the keys' conditioning and biases: below 1e-5 only size counts.
    for name, norm in expected.items():
        np.testing.assert_allclose(np.linalg.norm(gradients[canonical[name]]), norm, rtol=1e-3, atol=1e-8, err_msg=name)
    # The decoder stage does not train the encoder's parallel head, every other parameter has a gradient there.
    assert len(canonical) == len(gradients)


@pytest.mark.parametrize(
    ("name", "per_row_norms"),
    [(name, False) for name in VARIANTS] + [(name, True) for name in PER_ROW],
)
def test_no_logit_depends_on_its_own_or_a_later_pixel(name, per_row_norms):
    config, params, gray, colors = variant(name)
    model = build(config)
    height, width = config.resolution

    @jax.jit
    def logits(colors):
        return model.apply({"params": params}, jnp.asarray(gray[:1]), colors, per_row_norms=per_row_norms)[0]

    before = np.asarray(logits(colors[:1])).reshape(height * width, -1)
    for row, column in [(0, 0), (0, width - 1), (height // 2, width // 3), (height - 1, 0), (height - 1, width - 2)]:
        changed = colors[:1].copy()
        changed[0, row, column] = (changed[0, row, column] + 77) % 512
        moved = np.abs(np.asarray(logits(changed)).reshape(height * width, -1) - before).max(-1) > 0
        position = row * width + column
        assert not moved[: position + 1].any()
        assert moved[position + 1]


def test_paper_size_has_the_papers_number_of_parameters():
    def count(config):
        return sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(config)))

    assert count(configs.ColorizerConfig()) == 46_310_400
    # 4 and 3 layers of row and column attention, MLPs and norms; position and symbol embeddings; projection; logits.
    block = 4 * 512 * 512 + 2 * 512 * 513 + 4 * 512

    def upsampler(layers, side, symbols):
        stack = 2 * layers * (block + 4 * 2 * side) + 2 * side * 512
        return stack + (symbols + 256) * 512 + 1024 * 512 + 512 + 513 * 256

    assert count(configs.ColorUpsamplerConfig()) == upsampler(4, 64, 24)
    assert count(configs.SpatialUpsamplerConfig()) == upsampler(3, 256, 768)


def test_paper_size_logits_have_the_right_shape():
    model = build(configs.ColorizerConfig(), Compute(jnp.bfloat16))
    gray = jax.ShapeDtypeStruct((20, 64, 64, 1), jnp.uint8)
    colors = jax.ShapeDtypeStruct((20, 64, 64), jnp.int32)
    params = parameter_shapes(configs.ColorizerConfig())
    logits, parallel = jax.eval_shape(lambda p, g, c: model.apply({"params": p}, g, c), params, gray, colors)
    assert logits.shape == parallel.shape == (20, 64, 64, 512)
    assert logits.dtype == parallel.dtype == jnp.float32


def test_bfloat16_is_close_to_float32():
    config, params, values = golden_network("core_default")
    loss, _, logits, _ = losses(build(config, Compute(jnp.bfloat16)), params, images(values))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(loss, values["loss"], rtol=2e-3)


def test_dropout_draws_only_when_asked():
    config = tiny_colorizer(dropout=0.5)
    params = initialize(config, jax.random.key(0))
    model = build(config)
    gray, colors = jnp.zeros((1, 8, 6, 1), jnp.uint8), jnp.zeros((1, 8, 6), jnp.int32)

    def logits(**kwargs):
        return model.apply({"params": params}, gray, colors, **kwargs)[0]

    np.testing.assert_array_equal(logits(), logits())
    one, two = (logits(deterministic=False, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 1))
    assert (one != two).any()
