"""A pretrained stem for the gray encoder: what a classifier of ImageNet sees in a grayscale image.

It is not in the paper and off in its configurations. Which colours are likely depends on what an image shows. A network
that sees few images does not learn that from their colours, whereas a classifier of a million photographs knows much of
it. The classifier's trunk is EfficientNet-Lite0 (Tan and Le, 2019), whose weights have an open licence; it stays as it
is, and a small feature pyramid (Lin et al., 2017), which is trained, makes one vector a pixel of its features.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from coltran_jax.nn import initializers
from coltran_jax.nn.conditioning import Dense, LayerNorm
from coltran_jax.nn.conv_stem import Conv, ResidualBlock

# A grayscale image is enlarged so much: 64x64 pixels to 256x256, near the 224x224 that the trunk was trained on.
_ENLARGED = 4
# Blocks, side of the depthwise kernels, stride of the first block, expansion, features.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# The last stage of each resolution, from that of the grayscale image on.
_LEVELS = (1, 2, 4, 6)
# Of the feature pyramid.
_WIDTH = 128


class DepthwiseConv(nn.Module):
    """A convolution of each channel on its own with zero padding, to ceil(H / stride) x ceil(W / stride) pixels.

    Attributes:
        side: of the kernel.
        stride: in both directions.
        dtype: of what comes in, and of the result.
    """

    side: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        side, stride, (height, width, channels) = self.side, self.stride, x.shape[1:]
        kernel = self.param("kernel", initializers.kernel((None, None, None)), (side, side, channels))
        bias = self.param("bias", initializers.zeros((None,)), (channels,))
        # The last position of the kernel in each direction, and the padding that it takes, as TensorFlow's "SAME".
        last = [(math.ceil(length / stride) - 1) * stride for length in (height, width)]
        padding = [max(end + side - length, 0) for end, length in zip(last, (height, width), strict=True)]
        both = [(total // 2, total - total // 2) for total in padding]
        x = jnp.pad(x.astype(self.dtype), ((0, 0), *both, (0, 0)))
        # A sum over shifted images, in float32: on a CPU, XLA's grouped convolution takes 10 to 40 times as long.
        y = jnp.broadcast_to(bias, (len(x), *(end // stride + 1 for end in last), channels))
        for row in range(side):
            for column in range(side):
                shifted = x[:, row : row + last[0] + 1 : stride, column : column + last[1] + 1 : stride]
                y = y + shifted * kernel[row, column]
        return y.astype(self.dtype)


class InvertedResidualBlock(nn.Module):
    """Expansion, depthwise convolution and projection, added to what comes in where that has the same shape.

    The block of MobileNet v2 (Sandler et al., 2018). The statistics of its batch norms are part of the weights.

    Attributes:
        side: of the depthwise kernel.
        stride: of the depthwise convolution.
        expansion: width of the depthwise convolution, in widths of what comes in.
        features: D, width of the result.
        dtype: of the products and of the result.
    """

    side: int
    stride: int
    expansion: int
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        y = x
        if self.expansion > 1:
            y = jax.nn.relu6(Dense(self.expansion * x.shape[-1], (None, None), dtype=self.dtype, name="expand")(y))
        y = jax.nn.relu6(DepthwiseConv(self.side, self.stride, self.dtype, name="depthwise")(y))
        y = Dense(self.features, (None, None), dtype=self.dtype, name="project")(y)
        return x + y if x.shape == y.shape else y


class Trunk(nn.Module):
    """EfficientNet-Lite0 without its classifier, for grayscale images."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 1"]) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Returns features at 1/4, 1/8, 1/16 and 1/32 of the resolution of intensities from -1 to 1."""
        x = jax.nn.relu6(Conv(32, stride=2, dtype=self.dtype, name="input")(x))
        ends = []
        for i, (blocks, side, stride, expansion, features) in enumerate(STAGES):
            for j in range(blocks):
                name = f"block_{i}_{j}"
                x = InvertedResidualBlock(side, 1 if j else stride, expansion, features, self.dtype, name=name)(x)
            ends.append(x)
        return tuple(ends[i] for i in _LEVELS)


class PretrainedStem(nn.Module):
    """A trunk, which training leaves as it is, and a feature pyramid from its coarsest features to its finest.

    Attributes:
        features: D, width of the result.
        dropout: rate, of whole channels: what a few photographs show is else learnt by heart from so many features.
        dtype: of the products and of the result.
    """

    features: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, gray: UInt8[Array, "B H W 1"], *, deterministic: bool = True) -> Float[Array, "B H W D"]:
        """Returns features of each pixel; zeros before training, so that a trained network can be given a stem."""
        batch, height, width, _ = gray.shape
        x = (gray.astype(jnp.float32) - 127) / 128
        x = jax.image.resize(x, (batch, _ENLARGED * height, _ENLARGED * width, 1), "linear")
        *finer, x = jax.tree.map(jax.lax.stop_gradient, Trunk(self.dtype, name="trunk")(x))
        drop = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=deterministic)
        x = self._level(x, len(finer), drop)
        for i, level in reversed(list(enumerate(finer))):
            x = ResidualBlock(_WIDTH, self.dtype, name=f"block_{i + 1}")(x)
            # An image of odd size: the last row or column of the enlarged level is cut.
            enlarged = x.repeat(2, axis=1).repeat(2, axis=2)[:, : level.shape[1], : level.shape[2]]
            x = self._level(level, i, drop) + enlarged
        x = drop(LayerNorm(_WIDTH, dtype=self.dtype, name="norm")(x))
        return Dense(self.features, (None, "embed"), kernel_init="zeros", dtype=self.dtype, name="output")(x)

    def _level(self, x: Float[Array, "B H W C"], i: int, drop: nn.Dropout) -> Float[Array, "B H W D"]:
        x = drop(LayerNorm(x.shape[-1], dtype=self.dtype, name=f"norm_{i}")(x))
        return Dense(_WIDTH, (None, None), dtype=self.dtype, name=f"level_{i}")(x)
