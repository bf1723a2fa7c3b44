"""The upsamplers against golden/*_upsampler_default.npz."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden_network

from coltran_jax.networks.registry import build
from coltran_jax.networks.upsampler import upsample
from coltran_jax.nn.compute import Compute

NAMES = ("color", "spatial")


def network(name):
    config, params, values = golden_network(f"{name}_upsampler_default")
    coarser = values["rgb"] // 32 if name == "color" else values["low_up"]
    return config, params, values, coarser


def channel_loss(model, params, values, coarser, channel):
    """Logits and bits of one channel an example; channel (B,)."""
    index = channel[:, None, None, None]
    targets, chosen = (np.take_along_axis(x, index, -1)[..., 0] for x in (values["rgb"], coarser))
    logits = jax.jit(model.apply)({"params": params}, values["gray"], chosen, channel)
    log_probabilities = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None].astype(int), -1)
    return logits, -log_probabilities.mean() / np.log(2)


@pytest.mark.parametrize("name", NAMES)
def test_one_channel_an_example_as_in_training(name):
    config, params, values, coarser = network(name)
    logits, loss = channel_loss(build(config), params, values, coarser, values["channel_index"])
    expected = values["train_logits"][..., 0, :]
    np.testing.assert_allclose(logits[: len(expected)], expected, atol=1e-4)
    np.testing.assert_allclose(loss, values["train_loss"], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_all_channels_as_in_evaluation(name):
    config, params, values, coarser = network(name)
    model = build(config)
    results = [channel_loss(model, params, values, coarser, np.full(2, channel)) for channel in range(3)]
    logits = np.stack([logits for logits, _ in results], axis=-2)
    expected = values["eval_logits"] if name == "color" else values["eval_logits_first"]
    np.testing.assert_allclose(logits[: len(expected), :, : expected.shape[2]], expected, atol=1e-4)
    np.testing.assert_allclose(np.mean([loss for _, loss in results]), values["eval_loss"], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("chunk", "backend"), [(1, "xla"), (4, "xla"), (100, "xla"), (4, "pallas_interpreted")])
def test_images_in_chunks_of_any_size(name, chunk, backend):
    config, params, values, coarser = network(name)
    result = upsample(build(config, Compute(backend=backend)), params, values["gray"], coarser, chunk=chunk)
    np.testing.assert_array_equal(result, values["argmax_image"])
