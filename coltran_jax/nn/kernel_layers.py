"""Layers within Pallas kernels: a block's weights, shaped for kernels, and what is computed with references to them."""

from typing import Any

import jax
import jax.numpy as jnp

from coltran_jax.nn.attention_kernels import product
from coltran_jax.nn.conditioning import Affine, normalized_in_kernels

Weights = dict[str, Any]


def weights_of(params: dict[str, Any], dtype: jnp.dtype) -> Weights:
    """Shapes an `AxialBlock`'s parameters for Pallas kernels, and casts the kernels of products."""
    features = params["attention"]["output"].shape[-1]
    return {
        "qkv": params["attention"]["qkv"].reshape(features, 3 * features).astype(dtype),
        "output": params["attention"]["output"].reshape(features, features).astype(dtype),
        "norms": [always(params["attention_norm"]), always(params["mlp_norm"])],
        "mlp": {name: dense_of(params["mlp"][name], dtype) for name in ("hidden", "output")},
    }


def dense_of(params: dict[str, jax.Array], dtype: jnp.dtype) -> Weights:
    """Returns the weights of a `Dense` layer."""
    return {"kernel": params["kernel"].astype(dtype), "bias": params["bias"][None]}


def always(norm: dict[str, jax.Array]) -> Affine | None:
    """Returns a norm's learned scale and bias; None where they come from a context."""
    return Affine(norm["scale"][None], norm["bias"][None]) if "scale" in norm else None


def finish(
    x: jax.Array, attended: jax.Array, weights: Weights, norms: list[Affine], of_mlp: Affine | None, dtype: jnp.dtype
) -> jax.Array:
    """Applies the part of a block that follows its attention.

    Args:
        x: (..., D), the block's input.
        attended: (..., D) float32.
        weights: references, of `weights_of`.
        norms: scale and shift of the two norms, as references.
        of_mlp: what a context gives to the MLP.
        dtype: of products.

    Returns:
        (..., D) float32.
    """
    x = norm(x.astype(jnp.float32) + product(attended, weights["output"][...], dtype), norms[0])
    y = dense(jax.nn.relu(dense(x, weights["mlp"]["hidden"], dtype)), weights["mlp"]["output"], dtype)
    return norm(x + (of_mlp(y) if of_mlp else y), norms[1])


def dense(x: jax.Array, layer: Weights, dtype: jnp.dtype) -> jax.Array:
    """Applies a `Dense` layer, its weights as references: (B, C) -> (B, D) float32."""
    return product(x, layer["kernel"][...], dtype) + layer["bias"][...]


def norm(x: jax.Array, affine: Affine) -> jax.Array:
    """Applies a norm, its scale and shift as references: (B, D) -> (B, D) float32."""
    return scaled_and_shifted(normalized_in_kernels(x), affine)


def scaled_and_shifted(x: jax.Array, affine: Affine) -> jax.Array:
    """Scales and shifts (B, D), by references."""
    return jax.tree.map(lambda ref: ref[...], affine)(x)
