"""The base class of the upsamplers, which predict one channel at a time."""

import functools
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from coltran_jax.images import arrays
from coltran_jax.networks.base import Network, Run, coarser, cross_entropy_bits
from coltran_jax.nn.parameters import Parameters
from coltran_jax.nn.upsamplers import Upsampler


class UpsamplerNetwork(Network):
    """An upsampler; trained on one random channel of each image, given the true coarser image.

    Attributes:
        module_class: its module.
        reads: what it reads: "coarse", three bits a channel, or "rgb", the fine image.
        enlarges: whether the result has a higher resolution than what it reads.
    """

    module_class: ClassVar[type[Upsampler]]
    reads: ClassVar[Literal["coarse", "rgb"]]
    enlarges: ClassVar[bool]

    def build(self, config, compute):
        return self.module_class(config, compute=compute)

    def example(self, config):
        height, width = config.resolution
        gray, values = jnp.zeros((1, height, width, 1), jnp.uint8), jnp.zeros((1, height, width), jnp.int32)
        return gray, values, jnp.zeros((1,), jnp.int32)

    def check(self, run):
        field = "resolution" if self.enlarges else "downsample_res"
        side = getattr(run, field)
        if run.model.resolution != (side, side):
            return False, "model.resolution", run.model.resolution, f"{field}, {side}, twice"
        fits = not self.enlarges or run.resolution % run.downsample_res == 0
        return fits, "resolution", run.resolution, "a multiple of downsample_res"

    def inputs(self, run: Run, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The input made from true colours, and what the network should give: (B, h, w, 3) uint8 each."""
        small = coarser(images, run.downsample_res)
        inputs = self.reading_of(small)
        if not self.enlarges:
            return inputs, small
        return arrays.enlarge(inputs, run.resolution // run.downsample_res), images

    def reading_of(self, small: Any) -> Any:
        """Returns what it reads of a true image (..., 3) uint8 at the coarse resolution, not enlarged yet."""
        return small if self.reads == "rgb" else small // arrays.BIN_WIDTH

    def bits(self, run, model, params, images, channel=None, noise_key=None, **apply_kwargs):
        del noise_key
        inputs, truth = self.inputs(run, images)
        logits = _logits(model, params, inputs, truth, channel, **apply_kwargs)
        loss = cross_entropy_bits(logits, _channel(truth, channel))
        return loss, jnp.zeros_like(loss)

    def total(self, run, loss, encoder_loss):
        return loss

    def metrics(self, run, model, params, images):
        """Reports of all channels "bits"; "mae", the mean absolute error in intensities (0 to 255); "psnr", in dB
        (at most 100); "plain_mae" and "plain_psnr", the same of the image that the network was given: the middle of
        each coarse colour, or each pixel repeated.
        """
        inputs, truth = self.inputs(run, images)

        def one_channel(channel: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            logits = _logits(model, params, inputs, truth, channel)
            wanted = _channel(truth, channel)
            return cross_entropy_bits(logits, wanted), *_errors(jnp.argmax(logits, axis=-1), wanted)

        # One channel after another: three at once take three times the memory.
        channels = jnp.broadcast_to(jnp.arange(3)[:, None], (3, images.shape[0]))
        bits, absolute, squared = (x.mean(axis=0) for x in jax.lax.map(one_channel, channels))
        plain = inputs
        if self.reads == "coarse":
            plain = inputs.astype(jnp.int32) * arrays.BIN_WIDTH + arrays.BIN_WIDTH // 2
        plain_absolute, plain_squared = _errors(plain, truth)
        values = {"bits": bits, "mae": absolute, "psnr": _psnr(squared)}
        return values | {"plain_mae": plain_absolute, "plain_psnr": _psnr(plain_squared)}

    def draw(self, run, model, params, images, keys):
        inputs, truth = self.inputs(run, images)
        return upsample(model, params, arrays.gray_from_rgb(truth), inputs, chunk=1), truth


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def upsample(model: Upsampler, params: Parameters, gray: jax.Array, values: jax.Array, *, chunk: int) -> jax.Array:
    """The three channels of each image.

    Args:
        model: a color or spatial upsampler.
        params: its parameters.
        gray: (B, H, W, 1) uint8.
        values: (B, H, W, 3) uint8: three-bit values for the color upsampler, the enlarged fine image for the spatial
            upsampler.
        chunk: channels of images computed at a time; this decides how much memory is used.

    Returns:
        (B, H, W, 3) uint8.
    """
    found = _of_channels(model, params, gray, values, values, lambda logits, _: _most_probable(logits), chunk)
    return jnp.moveaxis(found, 1, -1)


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def upsample_and_score(
    model: Upsampler, params: Parameters, gray: jax.Array, values: jax.Array, truth: jax.Array, *, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """The three channels of each image, and the bits of the true ones.

    Args:
        model: a color or spatial upsampler.
        params: its parameters.
        gray: (B, H, W, 1) uint8.
        values: (B, H, W, 3) uint8; see `upsample`.
        truth: (B, H, W, 3) uint8.
        chunk: channels of images computed at a time.

    Returns:
        (B, H, W, 3) uint8, those of `upsample`; and (B,) float32, the sum over pixels and channels.
    """

    def both(logits: jax.Array, truth: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _most_probable(logits), cross_entropy_bits(logits, truth) * truth[0].size

    found, bits = _of_channels(model, params, gray, values, truth, both, chunk)
    return jnp.moveaxis(found, 1, -1), bits.sum(axis=1)


def _most_probable(logits: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)


def _of_channels(model, params, gray, values, truth, function, chunk):
    """A tree of (B, 3, ...) of a function of some channels' logits (C, H, W, 256) and truth (C, H, W)."""
    number = 3 * gray.shape[0]
    chunk = min(chunk, number)

    def some(items: jax.Array) -> Any:
        image, channel = items // 3, items % 3
        logits = model.apply({"params": params}, gray[image], values[image, ..., channel], channel)
        return function(logits, truth[image, ..., channel])

    def one(item: jax.Array) -> Any:
        return jax.tree.map(lambda x: x[0], some(item[None]))

    # Kernels take batches themselves. XLA's operations are estimated to take up to a tenth longer that way on TPUs.
    apply = some if model.compute.uses_pallas else jax.vmap(one)
    items = jnp.arange(number)
    whole = number - number % chunk
    parts = jax.lax.map(apply, items[:whole].reshape(-1, chunk))
    parts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)
    if whole < number:
        parts = jax.tree.map(lambda *both: jnp.concatenate(both), parts, apply(items[whole:]))
    return jax.tree.map(lambda x: x.reshape(-1, 3, *x.shape[1:]), parts)


def _channel(images: jax.Array, channel: jax.Array) -> jax.Array:
    """One channel an example: (B, H, W, 3), (B,) -> (B, H, W)."""
    return jnp.take_along_axis(images, channel[:, None, None, None].astype(jnp.int32), axis=-1)[..., 0]


def _logits(model, params, inputs, truth, channel, **apply_kwargs):
    gray = arrays.gray_from_rgb(truth)
    return model.apply({"params": params}, gray, _channel(inputs, channel), channel, **apply_kwargs)


def _errors(found: jax.Array, truth: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean absolute and mean squared difference of intensities: (B, ...) twice -> (B,) twice."""
    difference = found.astype(jnp.float32) - truth.astype(jnp.float32)
    axes = tuple(range(1, difference.ndim))
    return jnp.abs(difference).mean(axes), jnp.square(difference).mean(axes)


def _psnr(squared_error: jax.Array) -> jax.Array:
    return 10 * jnp.log10(255**2 / jnp.maximum(squared_error, 255**2 * 1e-10))
