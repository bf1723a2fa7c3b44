"""Parameters of a network at one resolution, resampled for the same network at another."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax.nn.parameters import Parameters


def resampled(params: Parameters, shapes: Parameters) -> Parameters:
    """Resamples the tables that belong to a resolution: positions, relative biases and spatial averages.

    Positions and the weights of spatial averages are interpolated linearly between the centres of pixels. Relative
    biases are interpolated linearly between offsets, so that an offset is the same part of the image at each
    resolution. All other parameters are returned as they are.

    Args:
        params: the parameters.
        shapes: the shapes at the wanted resolution, as `coltran_jax.networks.registry.parameter_shapes` returns them.

    Returns:
        Parameters of those shapes, float32.

    Raises:
        ValueError: a parameter of another shape that belongs to no resolution.
    """

    def resample(path: tuple[Any, ...], x: jax.Array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
        if x.shape == wanted.shape:
            return x
        name = path[-1].key
        if name in ("rows", "columns", "spatial_average"):
            return jax.image.resize(jnp.asarray(x), wanted.shape, "linear")
        if name == "relative_bias":
            return _relative_bias(np.asarray(x), wanted.shape[1] // 2)
        raise ValueError(f"{jax.tree_util.keystr(path)} is {x.shape}, expected {wanted.shape}")

    return jax.tree_util.tree_map_with_path(resample, params, shapes)


def _relative_bias(table: np.ndarray, length: int) -> jax.Array:
    """Column o + L - 1 is the bias of offset o, for o of -(L - 1) to L - 1; the last column is not used."""
    before = table.shape[1] // 2
    known = np.arange(2 * before - 1) - (before - 1)
    offsets = (np.arange(2 * length - 1) - (length - 1)) * (before / length)
    rows = [np.append(np.interp(offsets, known, row[:-1]), row[-1]) for row in table]
    return jnp.asarray(np.stack(rows), jnp.float32)
