"""Upsamplers of colour, of resolution and of both at once: a channel at a time, the three sharing all weights.

Section 4 of the paper, "Color and spatial upsampling".
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Integer, UInt8

from coltran_jax.config import ColorUpsamplerConfig
from coltran_jax.nn import initializers
from coltran_jax.nn.axial import AxialStack, BlockSpec, constrain
from coltran_jax.nn.colorizer import Embedding, look_up
from coltran_jax.nn.compute import DEFAULT, Compute
from coltran_jax.nn.conditioning import Dense
from coltran_jax.nn.linear import matmul_precision


class PartedDense(nn.Module):
    """A linear layer over inputs side by side that takes them one by one; its result is their sum and the bias.

    Attributes:
        num_parts: inputs.
        features: D, the width of each input and of the result.
        dtype: of the products, whose results are float32.
    """

    num_parts: int
    features: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        shape = (self.num_parts * self.features, self.features)
        self.kernel = self.param("kernel", initializers.kernel((None, "embed")), shape)
        self.bias = self.param("bias", initializers.zeros(("embed",)), (self.features,))

    def part(self, number: int, x: Float[Array, "*shape D"]) -> Float32[Array, "*shape D"]:
        """Projects input `number`: its summand of the result."""
        kernel = self.kernel[number * self.features : (number + 1) * self.features]
        return jnp.matmul(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            precision=matmul_precision(self.dtype),
            preferred_element_type=jnp.float32,
        )


class Upsampler(nn.Module):
    """Logits of one channel's 256 intensities from that channel's coarser values and gray.

    Attributes:
        config: shape.
        symbols_per_channel: values of a channel in the input, 8 or 256.
        compute: how it computes.
    """

    config: ColorUpsamplerConfig
    symbols_per_channel: int
    compute: Compute = DEFAULT

    def setup(self):
        config, dtype = self.config, self.compute.dtype
        self.channel_embedding = Embedding(3 * self.symbols_per_channel, config.hidden_size, dtype=dtype)
        if config.use_gray:
            self.gray_embedding = Embedding(256, config.hidden_size, dtype=dtype)
        inputs = 2 if config.use_gray else 1
        self.projection = PartedDense(inputs, config.hidden_size, dtype=dtype)
        self.stack = AxialStack(BlockSpec.of(config, config.resolution, self.compute), config.num_encoder_layers)
        self.head = Dense(256, ("embed", "symbols"), dtype=dtype)

    def __call__(
        self,
        gray: UInt8[Array, "B H W 1"],
        values: Integer[Array, "B H W"],
        channel: Int[Array, " B"],
        *,
        deterministic: bool = True,
    ) -> Float32[Array, "B H W 256"]:
        """One channel an image.

        Args:
            gray: the grayscale image.
            values: 0..symbols_per_channel - 1, one channel of the coarser image.
            channel: which one: 0 red, 1 green, 2 blue.
            deterministic: no dropout; otherwise a "dropout" key is needed.

        Returns:
            Logits of the 256 intensities.
        """
        symbols = values.astype(jnp.int32) + self.symbols_per_channel * channel[:, None, None]
        # Embedding a symbol and projecting it is looking it up in a projected table: the few hundred symbols are
        # projected, not the pixels.
        x = look_up(self.projection.part(0, self.channel_embedding.kernel), symbols)
        if self.config.use_gray:
            x = x + look_up(self.projection.part(1, self.gray_embedding.kernel), gray[..., 0])
        x = (x + self.projection.bias).astype(self.compute.dtype)
        x = constrain(self.stack(x, deterministic=deterministic))
        return constrain(self.head(x).astype(jnp.float32))


class ColorUpsampler(Upsampler):
    """Three-bit colours 64x64 -> RGB 64x64; `values` are 0..7."""

    symbols_per_channel: int = 8


class SpatialUpsampler(Upsampler):
    """RGB 64x64, enlarged to 256x256 -> RGB 256x256; `values` are 0..255."""

    symbols_per_channel: int = 256


class JointUpsampler(Upsampler):
    """Three-bit colours 64x64, enlarged to 256x256 -> RGB 256x256; `values` are 0..7."""

    symbols_per_channel: int = 8
