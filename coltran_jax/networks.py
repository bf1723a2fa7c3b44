"""From a configuration to the network's module and the shapes of its parameters."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from coltran_jax.config import ColorizerConfig, JointUpsamplerConfig, NetworkConfig, SpatialUpsamplerConfig
from coltran_jax.nn.colorizer import Colorizer
from coltran_jax.nn.upsamplers import ColorUpsampler, JointUpsampler, SpatialUpsampler, Upsampler

Parameters = dict[str, Any]


def build(
    config: NetworkConfig, dtype: jnp.dtype = jnp.float32, *, remat: str = "none", kernels: str = "xla"
) -> Colorizer | Upsampler:
    """The module of a configuration.

    Args:
        config: of the network.
        dtype: of matrix products and activations.
        remat: what the backward pass computes again; see `coltran_jax.nn.axial.block_class`.
        kernels: one of `coltran_jax.config.KERNELS`, what computes attention and, in the sampler, the inner decoder.
            All compute the same.
    """
    cls = {ColorizerConfig: Colorizer, SpatialUpsamplerConfig: SpatialUpsampler, JointUpsamplerConfig: JointUpsampler}
    return cls.get(type(config), ColorUpsampler)(config, dtype=dtype, remat=remat, kernels=kernels)


def initialize(config: NetworkConfig, key: jax.Array, *, boxed: bool = False) -> Parameters:
    """Fresh parameters, float32; `boxed` with the logical names of their axes, as Flax's `Partitioned`."""
    height, width = config.resolution
    gray = jnp.zeros((1, height, width, 1), jnp.uint8)
    values = jnp.zeros((1, height, width), jnp.int32)
    inputs = (gray, values) if isinstance(config, ColorizerConfig) else (gray, values, jnp.zeros((1,), jnp.int32))
    params = build(config).init(key, *inputs)["params"]
    return params if boxed else nn.unbox(params)


def in_compute_dtype(params: Parameters, dtype: jnp.dtype) -> Parameters:
    """The kernels that are only ever used in `dtype`, in it; all other parameters as they are.

    The networks compute the same with these, to the last bit. For loops that use the weights again and again: XLA
    leaves a cast of a weight in the loop, where for each pixel it costs more than the product does.
    """

    def cast(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        *above, name = (key.key for key in path)
        # The norms' projections are float32; so is the sum of an embedding and its bias, before it is cast.
        stays = any(part.endswith("norm") for part in above) or above[-2:] == ["encoder", "embedding"]
        return x.astype(dtype) if name in ("kernel", "qkv", "output", "context") and not stays else x

    return jax.tree_util.tree_map_with_path(cast, params)


@functools.cache
def parameter_shapes(config: NetworkConfig) -> Parameters:
    """Shapes and types of the parameters, as `jax.ShapeDtypeStruct`; nothing is computed or allocated."""
    return jax.eval_shape(functools.partial(initialize, config), jax.random.key(0))
