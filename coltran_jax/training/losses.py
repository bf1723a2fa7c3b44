"""What each network is trained on, from uint8 pictures on the device, and its loss in bits."""

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax.images import arrays
from coltran_jax.networks import Parameters
from coltran_jax.training.config import TrainConfig


@flax.struct.dataclass
class Bits:
    """Sums over pictures, from which means are taken once all are known.

    Attributes:
        loss: sum over pictures of the mean over their pixels (and channels), in bits.
        encoder_loss: the same of the colorizer's parallel head; 0 where there is none.
        count: pictures.
    """

    loss: jax.Array
    encoder_loss: jax.Array
    count: jax.Array

    def __add__(self, other: "Bits") -> "Bits":
        return jax.tree.map(jnp.add, self, other)


def coarser(pictures: jax.Array, size: int) -> jax.Array:
    """Area resize down, on the device: (B, H, H, C) uint8 -> (B, size, size, C) uint8.

    In integers, so that every device agrees: bit for bit `arrays.area_resize` where H is a multiple of `size`;
    elsewhere, means exactly half way between two values go to the even one, which the release's float32 sums
    can miss.
    """
    length = pictures.shape[1]
    if length == size:
        return pictures
    # An axis is first cut into parts that both source and output pixels are made of.
    unit = math.gcd(length, size)
    parts, each = size // unit, length // unit

    def narrowed(x: jax.Array, axis: int) -> jax.Array:
        shape = (*x.shape[:axis], size, each, *x.shape[axis + 1 :])
        return x.repeat(parts, axis=axis).reshape(shape).sum(axis=axis + 1)

    total = narrowed(narrowed(pictures.astype(jnp.int32), 1), 2)
    area = each * each
    low, rest = total // area, total % area
    # Half to even.
    up = (2 * rest > area) | ((2 * rest == area) & (low % 2 == 1))
    return (low + up).astype(jnp.uint8)


def _bits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over pixels of the cross entropy in bits: (B, H, W, V), (B, H, W) -> (B,)."""
    log_probabilities = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probabilities, targets[..., None].astype(jnp.int32), axis=-1)
    return -chosen.mean(axis=(1, 2, 3)) / np.log(2)


def _channel(pictures: jax.Array, channel: jax.Array) -> jax.Array:
    """One channel an example: (B, H, W, 3), (B,) -> (B, H, W)."""
    return jnp.take_along_axis(pictures, channel[:, None, None, None].astype(jnp.int32), axis=-1)[..., 0]


def bits_per_picture(
    config: TrainConfig,
    model: Any,
    params: Parameters,
    pictures: jax.Array,
    channel: jax.Array | None = None,
    noise_key: jax.Array | None = None,
    **apply_kwargs: Any,
) -> tuple[jax.Array, jax.Array]:
    """Bits per pixel of each picture.

    Args:
        config: the run.
        model: the network.
        params: its parameters.
        pictures: (B, H, W, 3) uint8 squares.
        channel: (B,) integers for the upsamplers; the colorizer takes none.
        noise_key: key of the colorizer's `input_noise`; None for no noise.
        apply_kwargs: `deterministic` and `rngs`.

    Returns:
        (B,) of the loss and (B,) of the parallel head's, float32.
    """
    if config.network == "colorizer":
        small = coarser(pictures, config.downsample_res)
        targets = arrays.coarse_from_rgb(small)
        gray = arrays.gray_from_rgb(small)
        if config.loss_factor == 0:
            loss = _bits(_parallel_logits(model, params, gray, **apply_kwargs), targets)
            return loss, loss
        inputs = targets if noise_key is None else replaced(targets, config.input_noise, noise_key)
        logits, parallel = model.apply({"params": params}, gray, inputs, **apply_kwargs)
        loss = _bits(logits, targets)
        return loss, jnp.zeros_like(loss) if parallel is None else _bits(parallel, targets)
    inputs, truth = upsampler_example(config, pictures)
    logits = _upsampler_logits(model, params, inputs, truth, channel, **apply_kwargs)
    loss = _bits(logits, _channel(truth, channel))
    return loss, jnp.zeros_like(loss)


def _parallel_logits(model, params, gray, **apply_kwargs):
    def encode(model, gray):
        return model.parallel_logits(model.encode(gray, deterministic=apply_kwargs.get("deterministic", True)))

    return model.apply({"params": params}, gray, method=encode, rngs=apply_kwargs.get("rngs"))


def replaced(colors: jax.Array, probability: float, key: jax.Array) -> jax.Array:
    """Replaces some pixels' coarse colours by those of random other pixels: (B, H, W) integers -> (B, H, W)."""
    if not probability:
        return colors
    which, where = jax.random.split(key)
    others = jnp.take(colors.ravel(), jax.random.randint(where, colors.shape, 0, colors.size))
    return jnp.where(jax.random.bernoulli(which, probability, colors.shape), others, colors)


def upsampler_example(config: TrainConfig, pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An upsampler's input made from the true colours, and what it should give: (B, h, w, 3) uint8 each."""
    small = coarser(pictures, config.downsample_res)
    inputs = small if config.network == "spatial_upsampler" else small // arrays.BIN_WIDTH
    if config.network == "color_upsampler":
        return inputs, small
    return arrays.enlarge(inputs, config.resolution // config.downsample_res), pictures


def _upsampler_logits(model, params, inputs, truth, channel, **apply_kwargs):
    gray = arrays.gray_from_rgb(truth)
    return model.apply({"params": params}, gray, _channel(inputs, channel), channel, **apply_kwargs)


def evaluation_sums(
    config: TrainConfig, model: Any, params: Parameters, pictures: jax.Array, mask: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """What an evaluation reports, summed over the pictures where `mask` (B,) is one, and the number of these.

    Of the colorizer: "bits" and, of the parallel head, "encoder_bits". Of an upsampler, over all three channels:
    "bits"; "mae", the mean absolute error of its picture in intensities (0 to 255), and "psnr", in dB (at most 100);
    "plain_mae" and "plain_psnr", the same of the picture that it was given: the middle of each coarse colour, or each
    pixel repeated.
    """
    if config.network == "colorizer":
        bits, encoder_bits = bits_per_picture(config, model, params, pictures)
        values = {"bits": bits, "encoder_bits": encoder_bits}
    else:
        inputs, truth = upsampler_example(config, pictures)

        def one_channel(channel: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            logits = _upsampler_logits(model, params, inputs, truth, channel)
            wanted = _channel(truth, channel)
            return _bits(logits, wanted), *_errors(jnp.argmax(logits, axis=-1), wanted)

        # One channel after another: three at once take three times the memory.
        channels = jnp.broadcast_to(jnp.arange(3)[:, None], (3, pictures.shape[0]))
        bits, absolute, squared = (x.mean(axis=0) for x in jax.lax.map(one_channel, channels))
        plain = inputs
        if config.network != "spatial_upsampler":
            plain = inputs.astype(jnp.int32) * arrays.BIN_WIDTH + arrays.BIN_WIDTH // 2
        plain_absolute, plain_squared = _errors(plain, truth)
        values = {"bits": bits, "mae": absolute, "psnr": _psnr(squared)}
        values |= {"plain_mae": plain_absolute, "plain_psnr": _psnr(plain_squared)}
    return {key: (mask * value).sum() for key, value in values.items()}, mask.sum()


def _errors(found: jax.Array, truth: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean absolute and mean squared difference of intensities: (B, ...) twice -> (B,) twice."""
    difference = found.astype(jnp.float32) - truth.astype(jnp.float32)
    axes = tuple(range(1, difference.ndim))
    return jnp.abs(difference).mean(axes), jnp.square(difference).mean(axes)


def _psnr(squared_error: jax.Array) -> jax.Array:
    return 10 * jnp.log10(255**2 / jnp.maximum(squared_error, 255**2 * 1e-10))
