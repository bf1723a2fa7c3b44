"""Compares Pallas kernels on the device at hand with XLA's operations on the host, before a run relies on them."""

import dataclasses
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from coltran_jax import config as configs
from coltran_jax.errors import TrainingError
from coltran_jax.networks.registry import NETWORKS, initialize
from coltran_jax.nn.parameters import Parameters
from coltran_jax.partitioning import host_device
from coltran_jax.training import state as states
from coltran_jax.training.config import TrainConfig

# Of the norm of a weight's gradient. Rounding to bfloat16 takes some hundredths of it, a tenth in very narrow networks.
TOLERANCE = 0.15


def check_kernels(config: TrainConfig) -> None:
    """Computes gradients of a network with one layer of each stack by the run's backend and by XLA's operations.

    On two cores of a host it takes half a minute to a minute, half of which goes to compiling.

    Raises:
        TrainingError: they differ by more than rounding, or the kernels do not run.
    """
    kind = jax.local_devices()[0].device_kind
    advice = "train with --config.backend=xla, and report this"
    try:
        errors = gradient_errors(config)
    except jax.errors.JaxRuntimeError as error:
        first, *_ = str(error).splitlines()
        raise TrainingError(f"Pallas kernels do not run on {kind} ({first}): {advice}") from error
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= TOLERANCE:
        raise TrainingError(
            f"Pallas kernels on {kind} give a gradient of {worst} that is off by {errors[worst]:.2g} of its norm, "
            f"expected at most {TOLERANCE}: {advice}"
        )
    logging.info("Pallas kernels give gradients within %.2g of those of XLA's operations", errors[worst])


def gradient_errors(config: TrainConfig) -> dict[str, float]:
    """Returns how far a network's gradients are from XLA's in float32, relative to the norm of each weight's.

    The norm of a gradient that is nearly zero counts as a thousandth of the root mean square of all norms.
    """
    model = configs.without_dropout(NETWORKS[config.network].without_pretrained(config.model))
    model = configs.with_fields(model, num_encoder_layers=1, num_outer_layers=1, num_inner_layers=1)
    # No kernel computes the stem, and rounding takes more of its gradient.
    run = dataclasses.replace(config, model=configs.with_fields(model, conv_stem=()), input_noise=0.0)
    params = _parameters(run)
    rng = np.random.default_rng(1)
    # Two, as a device may have two cores.
    images = rng.integers(0, 256, (2, run.resolution, run.resolution, 3), np.uint8)
    found = _by_name(jax.jit(_gradient_of(run))(params, images))
    reference = dataclasses.replace(run, backend="xla", dtype="float32", remat="block")
    # Not on the device, for which it would take twice as long to compile.
    with jax.default_device(host_device()):
        expected = _by_name(jax.jit(_gradient_of(reference))(params, images))
    norms = {name: np.linalg.norm(gradient) for name, gradient in expected.items()}
    least = 0.001 * np.sqrt(np.mean(np.square(list(norms.values()))))
    return {
        name: float(np.linalg.norm(found[name] - expected[name]) / max(norm, least)) for name, norm in norms.items()
    }


def _parameters(run: TrainConfig) -> Parameters:
    """Fresh ones, moved, so that those that start at zero or one bear on the result, too."""
    rng = np.random.default_rng(0)
    with jax.default_device(host_device()):
        params = jax.device_get(jax.jit(lambda key: initialize(run.model, key))(jax.random.key(0)))
    return jax.tree.map(lambda x: x + 0.02 * rng.standard_normal(x.shape, np.float32), params)


def _gradient_of(run: TrainConfig) -> Callable[[Parameters, jax.Array], Parameters]:
    """Returns the gradient of a run's loss, a function of parameters and images (B, H, W, 3) uint8."""
    kind, network = NETWORKS[run.network], states.network(run)

    @jax.grad
    def gradient(params: Parameters, images: jax.Array) -> jax.Array:
        channel = jnp.arange(len(images)) % 3
        losses = kind.bits(run, network, params, images, channel, deterministic=False)
        return kind.total(run, *losses).mean()

    return gradient


def _by_name(gradients: Parameters) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(jax.device_get(gradients), sep="/")
