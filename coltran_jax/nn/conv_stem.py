"""A convolutional stem for the gray encoder: what a grayscale image shows, from its coarse to its fine structure.

It is not in the paper and off in its configurations. A network that sees few images, at low cost, learns what they show
sooner from convolutions over a pyramid of resolutions than from attention at full resolution alone.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from coltran_jax.nn import initializers
from coltran_jax.nn.conditioning import Dense, LayerNorm
from coltran_jax.nn.linear import matmul_precision

# Residual blocks of a level on the way down; on the way up there is one.
_BLOCKS_DOWN = 2


class Conv(nn.Module):
    """A 3x3 convolution with zero padding, to ceil(H / stride) x ceil(W / stride) pixels.

    Attributes:
        features: width of the result.
        stride: in both directions.
        dtype: of the products and of the result.
    """

    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", initializers.kernel((None, None, None, None)), shape)
        bias = self.param("bias", initializers.zeros((None,)), (self.features,))
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=matmul_precision(self.dtype),
        )
        return y + bias.astype(self.dtype)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(norm(x))))."""

    features: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.norm = LayerNorm(self.features, dtype=self.dtype)
        self.first = Conv(self.features, dtype=self.dtype)
        self.second = Conv(self.features, dtype=self.dtype)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return x + self.second(jax.nn.relu(self.first(self.norm(x))))


class ConvStem(nn.Module):
    """A pyramid of residual convolutions, down to its coarsest level and back up.

    Attributes:
        widths: features of each level. Each level has half the resolution of the one before it, the first half that of
            the image.
        features: D, width of the result.
        dtype: of the products and of the result.
    """

    widths: tuple[int, ...]
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, gray: UInt8[Array, "B H W 1"]) -> Float[Array, "B H W D"]:
        """Returns features of each pixel."""
        x = gray.astype(jnp.float32) / 127.5 - 1
        fine = Conv(self.widths[0] // 2, dtype=self.dtype, name="input")(x)
        levels = [fine]
        for i, width in enumerate(self.widths):
            x = Conv(width, stride=2, dtype=self.dtype, name=f"down_{i}")(levels[-1])
            for j in range(_BLOCKS_DOWN):
                x = ResidualBlock(width, self.dtype, name=f"down_block_{i}_{j}")(x)
            levels.append(x)
        x = levels.pop()
        for i in reversed(range(len(self.widths))):
            x = ResidualBlock(self.widths[i], self.dtype, name=f"up_block_{i}")(x)
            finer = levels.pop()
            x = Dense(finer.shape[-1], (None, None), dtype=self.dtype, name=f"up_{i}")(x)
            # An image of odd size: the last row or column of the enlarged level is cut.
            x = finer + x.repeat(2, axis=1).repeat(2, axis=2)[:, : finer.shape[1], : finer.shape[2]]
        return Dense(self.features, (None, "embed"), dtype=self.dtype, name="output")(jax.nn.relu(x))
