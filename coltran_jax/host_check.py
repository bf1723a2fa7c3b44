"""Compares what Pallas kernels drew with XLA's operations on the host, before anything relies on them.

The first image of a pipeline is looked at again by the networks as they are computed on the host, in float32: by what
they say, each colour and each intensity should be the best there is, or nearly so, where rounding decides otherwise.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax.checkpoints.bundles import Bundle
from coltran_jax.errors import KernelError
from coltran_jax.images import arrays
from coltran_jax.inference import Inference
from coltran_jax.networks.chain import COLORIZER
from coltran_jax.networks.registry import build
from coltran_jax.nn.colorizer import Colorizer
from coltran_jax.nn.parameters import Parameters
from coltran_jax.nn.upsamplers import Upsampler
from coltran_jax.partitioning import host_device
from coltran_jax.sampling.content import tilt_by
from coltran_jax.sampling.noise import Noise, perturbed
from coltran_jax.sampling.options import SamplingOptions
from coltran_jax.sampling.sampler import chosen_of, statistics

# Of what `losses` returns. Rounding to bfloat16 makes at most some thousandths.
TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One image that was drawn; no array has an axis of images or samples.

    Attributes:
        gray_coarse: (h, w, 1) uint8, what the colorizer saw.
        gray_final: (h', w', 1) uint8.
        coarse: (h, w, 3) uint8, what it drew.
        log_likelihood_bits: of `coarse`, as the sampler says.
        upsampled: what each upsampler made of that, in order, (H, W, 3) uint8.
        noise: that `coarse` was drawn with, of one image and sample; None where particles or known colours had a part
            in it, so that the noise alone does not decide it.
    """

    gray_coarse: np.ndarray
    gray_final: np.ndarray
    coarse: np.ndarray
    log_likelihood_bits: float
    upsampled: list[np.ndarray]
    noise: Noise | None


_ADVICE = "take the backend 'xla', and report this"


@contextlib.contextmanager
def running(networks: Inference) -> Iterator[None]:
    """While networks are run whose kernels have not been checked yet.

    Raises:
        KernelError: the kernels do not run.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        # The device's memory may be too small for a batch; that next to its arithmetic (VMEM) is the kernels' matter.
        too_large = "RESOURCE_EXHAUSTED" in str(error) and "vmem" not in str(error)
        if networks.unchecked is None or too_large:
            raise
        first, *_ = str(error).splitlines()
        raise KernelError(f"Pallas kernels do not run on {_kind(networks)} ({first}): {_ADVICE}") from error


def check(networks: Inference, bundle: Bundle, drawn: Drawn, options: SamplingOptions) -> None:
    """Checks an image that the networks drew; after that their kernels have been checked.

    Raises:
        KernelError: the image is not what the networks give.
    """
    for what, loss in losses(networks, bundle, drawn, options).items():
        if not loss <= TOLERANCE:
            raise KernelError(
                f"Pallas kernels on {_kind(networks)} give another image than XLA's operations on the host: {what} are "
                f"off by {loss:.2g}, expected at most {TOLERANCE}; {_ADVICE}"
            )
    networks.unchecked = None


def _kind(networks: Inference) -> str:
    return networks.devices[0].device_kind


def losses(networks: Inference, bundle: Bundle, drawn: Drawn, options: SamplingOptions) -> dict[str, float]:
    """Returns how far an image is from what the networks give, on average over pixels, by what is off.

    "likelihoods" are off by bits. "draws" and "intensities of" an upsampler are off by what the perturbed logits of the
    former and the logits of the latter are below the largest ones, at most 1 for each pixel. Of an upsampler's three
    channels one is looked at.
    """
    with jax.default_device(host_device()):
        found = _of_coarse(bundle, drawn, options)
        values = drawn.coarse // arrays.BIN_WIDTH
        for name, made in zip(networks.upsamplers, drawn.upsampled, strict=True):
            gray, read = networks.inputs(name, values[None], drawn.gray_coarse[None], drawn.gray_final[None])
            model = build(bundle.configs[name])
            loss = _of_intensities(model, bundle.params[name], gray, read[..., 0], made[None, ..., 0])
            found[f"intensities of the {name.replace('_', ' ')}"] = float(loss)
            values = made
    return found


def _of_coarse(bundle: Bundle, drawn: Drawn, options: SamplingOptions) -> dict[str, float]:
    model, params = build(bundle.configs[COLORIZER]), bundle.params[COLORIZER]
    gray, coarse = drawn.gray_coarse[None], np.asarray(arrays.coarse_from_rgb(drawn.coarse[None]), np.int32)
    logits, parallel_logits = _logits(model, params, gray, coarse, options.as_released)
    log_probability_bits, *_ = statistics(logits, coarse)
    found = {"likelihoods": float(abs(log_probability_bits.sum() - drawn.log_likelihood_bits)) / coarse.size}
    if drawn.noise is not None:
        if options.guidance:
            logits += options.temperature * tilt_by(parallel_logits, gray, bundle.gray_table, options.guidance)
        found["draws"] = float(_of_draws(logits, coarse, drawn.noise, *options.limits))
    return found


@functools.partial(jax.jit, static_argnames=("model", "as_released"))
def _logits(model: Colorizer, params: Parameters, gray: jax.Array, coarse: jax.Array, as_released: bool):
    return model.apply({"params": params}, gray, coarse, per_row_norms=as_released)


@jax.jit
def _of_draws(logits, coarse, noise, temperature, min_p, top_p):
    _, height, width, _ = logits.shape
    # (H, B S, W, 512).
    its_noise = jax.lax.map(lambda row: noise.row(row, width)[:, 0], jnp.arange(height))
    noisy = perturbed(logits, jnp.moveaxis(its_noise, 0, 1), temperature, jnp.log(min_p), top_p)
    # At temperature one, so that what rounding makes of logits counts as much at any other.
    return _lost(temperature * noisy, coarse)


@functools.partial(jax.jit, static_argnames="model")
def _of_intensities(model: Upsampler, params: Parameters, gray: jax.Array, values: jax.Array, made: jax.Array):
    return _lost(model.apply({"params": params}, gray, values, jnp.zeros(1, jnp.int32)), made)


def _lost(values: jax.Array, chosen: jax.Array) -> jax.Array:
    """Returns what the chosen ones are below the largest: (..., V), (...) integers -> ()."""
    return jnp.minimum(values.max(axis=-1) - chosen_of(values, chosen.astype(jnp.int32)), 1).mean()
