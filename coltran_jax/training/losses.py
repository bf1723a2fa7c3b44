"""What each network is trained on, from uint8 pictures on the device, and its loss in bits (SPEC sections 2, 4, 5)."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax import images
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
    """Area resize down by a whole factor, on the device: (B, H, H, C) uint8 -> (B, size, size, C) uint8."""
    factor = pictures.shape[1] // size
    if factor == 1:
        return pictures
    blocks = pictures.reshape(pictures.shape[0], size, factor, size, factor, pictures.shape[-1])
    total = blocks.astype(jnp.int32).sum(axis=(2, 4))
    area = factor * factor
    low, rest = total // area, total % area
    # Half to even, in integers, so that every device agrees.
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
    **apply_kwargs: Any,
) -> tuple[jax.Array, jax.Array]:
    """Bits per pixel of each picture.

    Args:
        config: the run.
        model: the network.
        params: its parameters.
        pictures: (B, H, W, 3) uint8 squares.
        channel: (B,) integers for the upsamplers; the colorizer takes none.
        apply_kwargs: `deterministic` and `rngs`.

    Returns:
        (B,) of the loss and (B,) of the parallel head's, float32.
    """

    def apply(*args):
        return model.apply({"params": params}, *args, **apply_kwargs)

    small = coarser(pictures, config.downsample_res)
    if config.network == "colorizer":
        targets = images.coarse_from_rgb(small)
        logits, parallel = apply(images.gray_from_rgb(small), targets)
        loss = _bits(logits, targets)
        return loss, jnp.zeros_like(loss) if parallel is None else _bits(parallel, targets)
    if config.network == "color_upsampler":
        inputs, truth = small // images.BIN_WIDTH, small
    else:
        inputs, truth = images.enlarge(small, config.resolution // config.downsample_res), pictures
    logits = apply(images.gray_from_rgb(truth), _channel(inputs, channel), channel)
    loss = _bits(logits, _channel(truth, channel))
    return loss, jnp.zeros_like(loss)


def evaluation_bits(config: TrainConfig, model: Any, params: Parameters, pictures: jax.Array, mask: jax.Array) -> Bits:
    """Sums over the pictures where `mask` (B,) is one; the upsamplers' over all three channels."""
    if config.network == "colorizer":
        loss, encoder_loss = bits_per_picture(config, model, params, pictures)
    else:
        # One channel after another: three at once take three times the memory.
        channels = jnp.broadcast_to(jnp.arange(3)[:, None], (3, pictures.shape[0]))
        losses, encoder_losses = jax.lax.map(lambda c: bits_per_picture(config, model, params, pictures, c), channels)
        loss, encoder_loss = losses.mean(axis=0), encoder_losses.mean(axis=0)
    return Bits((mask * loss).sum(), (mask * encoder_loss).sum(), mask.sum())
