"""Initial values of parameters, each with the logical names of its axes for sharding."""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]

# Kinds by the names that the release's config files use, as (gain, distribution).
_KINDS = {"glorot_uniform": (1.0, "uniform"), "glorot_normal": (1.0, "normal"), "zeros": None}


def kernel(axes: tuple[str | None, ...], *, kind: str = "glorot_uniform", shape: Sequence[int] = ()) -> Initializer:
    """A kernel's initial values, with fans as Keras counts them.

    All axes but the last two count as a receptive field, which multiplies both fans; a (D, N, K) kernel is not
    flattened to a matrix first.

    Args:
        axes: logical names of the axes of the parameter.
        kind: one of the names in the release's config files.
        shape: the shape whose fans count, where the parameter stacks several such kernels.
    """

    def init(key: jax.Array, param_shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        if _KINDS[kind] is None:
            return jnp.zeros(param_shape, dtype)
        gain, distribution = _KINDS[kind]
        *receptive, fan_in, fan_out = shape or param_shape
        variance = 2 * gain / (math.prod(receptive) * (fan_in + fan_out))
        if distribution == "uniform":
            limit = math.sqrt(3 * variance)
            return jax.random.uniform(key, param_shape, dtype, -limit, limit)
        # Keras draws from a normal truncated at two deviations, widened to keep the variance.
        stddev = math.sqrt(variance) / 0.87962566103423978
        return stddev * jax.random.truncated_normal(key, -2, 2, param_shape, dtype)

    return nn.with_logical_partitioning(init, axes)


def zeros(axes: tuple[str | None, ...]) -> Initializer:
    """All zeros."""
    return nn.with_logical_partitioning(nn.initializers.zeros, axes)


def ones(axes: tuple[str | None, ...]) -> Initializer:
    """All ones."""
    return nn.with_logical_partitioning(nn.initializers.ones, axes)


def normal(stddev: float, axes: tuple[str | None, ...]) -> Initializer:
    """Normal with mean zero."""
    return nn.with_logical_partitioning(nn.initializers.normal(stddev), axes)
