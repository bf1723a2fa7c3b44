"""Sampling of the two upsamplers: every channel of every picture by itself, the most probable intensity of each pixel.

Pictures and channels pass in chunks, so that memory does not grow with their number.
"""

import functools

import jax
import jax.numpy as jnp

from coltran_jax.networks import Parameters
from coltran_jax.nn.upsamplers import Upsampler


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def upsample(model: Upsampler, params: Parameters, gray: jax.Array, values: jax.Array, *, chunk: int) -> jax.Array:
    """The three channels of each picture.

    Args:
        model: a color or spatial upsampler.
        params: its parameters.
        gray: (B, H, W, 1) uint8.
        values: (B, H, W, 3) uint8: three-bit values for the color upsampler, the enlarged fine picture for the spatial
            upsampler.
        chunk: channels of pictures computed at a time; this decides how much memory is used.

    Returns:
        (B, H, W, 3) uint8.
    """
    batch = gray.shape[0]

    def one_channel(item: jax.Array) -> jax.Array:
        picture, channel = item // 3, item % 3
        logits = model.apply(
            {"params": params}, gray[picture][None], values[picture, ..., channel][None], channel[None]
        )
        return jnp.argmax(logits[0], axis=-1).astype(jnp.uint8)

    channels = jax.lax.map(one_channel, jnp.arange(3 * batch), batch_size=min(chunk, 3 * batch))
    return jnp.moveaxis(channels.reshape(batch, 3, *channels.shape[1:]), 1, -1)
