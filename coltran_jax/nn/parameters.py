"""Parameters of a network: a tree of float32 arrays, by the names of its modules."""

from typing import Any

import jax
import jax.numpy as jnp

Parameters = dict[str, Any]


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
