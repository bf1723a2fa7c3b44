"""An axial block as one Pallas kernel for TPUs, for whole images and without conditions.

The block's weights stay in the memory next to the TPU's arithmetic (VMEM), and so does all that becomes of a line on
its way through: an image is read once and written once, where XLA's operations read and write it a dozen times.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from coltran_jax.nn.attention_kernels import cost, heads, lines_a_step, product, scaled_queries, softmax_weights
from coltran_jax.nn.conditioning import Affine, normalized

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
    """A norm's learned scale and bias; None where they come from a context."""
    return Affine(norm["scale"][None], norm["bias"][None]) if "scale" in norm else None


def apply_block(x: jax.Array, params: dict[str, Any], bias: jax.Array, dtype: jnp.dtype, interpret: bool) -> jax.Array:
    """Applies an `AxialBlock` without conditions to its lines.

    Args:
        x: (B, A, L, D).
        params: of the block.
        bias: (N, L, L) float32, of its attention.
        dtype: of matrix products and of the result. Sums, and what lies between products, are float32.
        interpret: run step by step on any device, for tests.

    Returns:
        (B, A, L, D).
    """
    lines = x.reshape(-1, *x.shape[2:])
    group = lines_a_step(*lines.shape[:2])
    weights = weights_of(params, dtype)
    once = None if interpret else pl.Buffered(1)
    products = [*jax.tree.leaves(weights["mlp"]), weights["qkv"], weights["output"]]
    pairs = lines.size * lines.shape[1]
    per_step = pl.BlockSpec((group, *lines.shape[1:]), lambda i: (i, 0, 0))
    stays = jax.tree.map(lambda x: pl.BlockSpec(x.shape, lambda i: (0,) * x.ndim, pipeline_mode=once), (bias, weights))
    return pl.pallas_call(
        functools.partial(_kernel, dtype),
        grid=(lines.shape[0] // group,),
        in_specs=(per_step, *stays),
        out_specs=per_step,
        out_shape=jax.ShapeDtypeStruct(lines.shape, dtype),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=64 * 2**20),
        cost_estimate=cost(
            lines.shape[0] * lines.shape[1] * sum(x.size for x in products) + 2 * pairs,
            2 * lines.size * jnp.dtype(dtype).itemsize,
            pairs * bias.shape[0] / lines.shape[2],
        ),
        interpret=interpret,
        name="axial_block",
    )(lines, bias, weights).reshape(x.shape)


def _kernel(dtype, lines, bias, weights, out):
    group, length, features = lines.shape
    x = lines[...].reshape(group * length, features)
    qkv = product(x, weights["qkv"][...], dtype)
    queries, keys, values = (part.astype(dtype) for part in jnp.split(qkv, 3, axis=1))
    queries = scaled_queries(queries, features // bias.shape[0])
    attended = []
    for i in range(group):
        line, by_head = slice(i * length, (i + 1) * length), []
        for n, part in heads(bias.shape[0], features):
            by_pair, total = softmax_weights(queries[line, part], keys[line, part], bias[n])
            by_head.append(product(by_pair, values[line, part], dtype) / total)
        attended.append(jnp.concatenate(by_head, axis=1))
    result = finish(x, jnp.concatenate(attended, axis=0), weights, weights["norms"], None, dtype)
    out[...] = result.astype(dtype).reshape(lines.shape)


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
    """A `Dense` layer, its weights as references: (B, C) -> (B, D) float32."""
    return product(x, layer["kernel"][...], dtype) + layer["bias"][...]


def norm(x: jax.Array, affine: Affine) -> jax.Array:
    """A norm, its scale and shift as references: (B, D) -> (B, D) float32."""
    return jax.tree.map(lambda ref: ref[...], affine)(normalized(x))
