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

from coltran_jax.nn.attention_kernels import (
    attention_gradient,
    cost,
    heads,
    lines_a_step,
    product,
    scaled_queries,
    softmax_weights,
    zero_at_first,
)
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
    """A norm's learned scale and bias; None where they come from a context."""
    return Affine(norm["scale"][None], norm["bias"][None]) if "scale" in norm else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def apply_block(x: jax.Array, params: dict[str, Any], bias: jax.Array, dtype: jnp.dtype, interpret: bool) -> jax.Array:
    """Applies an `AxialBlock` without conditions to its lines. The gradient is a kernel, too, and keeps x alone.

    Args:
        x: (B, A, L, D).
        params: of the block.
        bias: (N, L, L) float32, of its attention.
        dtype: of matrix products and of the result. Sums, and what lies between products, are float32.
        interpret: run step by step on any device, for tests.

    Returns:
        (B, A, L, D).
    """
    (result,) = _over_lines(_kernel, (x,), params, bias, dtype, interpret, times=1)
    return result


def _apply_block_forward(x, params, bias, dtype, interpret):
    return apply_block(x, params, bias, dtype, interpret), (x, params, bias)


def _apply_block_backward(dtype, interpret, saved, gradient):
    x, params, bias = saved
    # All is computed again, and each product has two gradients.
    of_x, of_bias, of_weights = _over_lines(
        _differentiate, (x, gradient), params, bias, dtype, interpret, times=3, sums=True
    )
    _, to_params = jax.vjp(functools.partial(weights_of, dtype=jnp.float32), params)
    return of_x, *to_params(of_weights), of_bias


apply_block.defvjp(_apply_block_forward, _apply_block_backward)


def _over_lines(function, images, params, bias, dtype, interpret, *, times, sums=False) -> tuple[Any, ...]:
    """Runs a kernel over all lines.

    Args:
        function: the kernel; takes the type, references to lines of each image, to the bias and the weights, and those
            to what it returns.
        images: (B, A, L, D) each.
        params: of the block.
        bias: (N, L, L).
        dtype: of products.
        interpret: see `apply_block`.
        times: how often it computes a block, for the cost.
        sums: also return sums over lines, float32, shaped as the bias and as the weights.

    Returns:
        Lines shaped as an image, and the sums.
    """
    lines = [x.reshape(-1, *x.shape[2:]) for x in images]
    shape = lines[0].shape
    group = lines_a_step(*shape[:2])
    weights = weights_of(params, dtype)
    once = None if interpret else pl.Buffered(1)
    products = [*jax.tree.leaves(weights["mlp"]), weights["qkv"], weights["output"]]
    pairs = lines[0].size * shape[1]
    per_step = pl.BlockSpec((group, *shape[1:]), lambda i: (i, 0, 0))
    stays = jax.tree.map(lambda x: pl.BlockSpec(x.shape, lambda i: (0,) * x.ndim, pipeline_mode=once), (bias, weights))
    as_sums = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), (bias, weights))
    result, *summed = pl.pallas_call(
        functools.partial(function, dtype),
        grid=(shape[0] // group,),
        in_specs=(*[per_step] * len(lines), *stays),
        out_specs=(per_step, *stays) if sums else (per_step,),
        out_shape=(jax.ShapeDtypeStruct(shape, dtype), *(as_sums if sums else ())),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=64 * 2**20),
        cost_estimate=cost(
            times * (shape[0] * shape[1] * sum(x.size for x in products) + 2 * pairs),
            (1 + len(lines)) * lines[0].size * jnp.dtype(dtype).itemsize,
            pairs * bias.shape[0] / shape[2],
        ),
        interpret=interpret,
        name="axial_block" if not sums else "axial_block_gradient",
    )(*lines, bias, weights)
    return result.reshape(images[0].shape), *summed


def _kernel(dtype, lines, bias, weights, out):
    x = lines[...].reshape(-1, lines.shape[2])
    attended, _, _ = _attend(x, lines.shape[1], bias, weights, dtype)
    out[...] = finish(x, attended, weights, weights["norms"], None, dtype).astype(dtype).reshape(lines.shape)


def _attend(x, length, bias, weights, dtype):
    """Attention of lines before its last product.

    Args:
        x: (P, D), lines one after the other.
        length: of a line.
        bias: reference, (N, L, L).
        weights: references, of `weights_of`.
        dtype: of products.

    Returns:
        What is attended (P, D) float32; queries, keys and values; and softmax weights by line and head (L, L).
    """
    features = x.shape[1]
    qkv = product(x, weights["qkv"][...], dtype)
    queries, keys, values = (part.astype(dtype) for part in jnp.split(qkv, 3, axis=1))
    queries = scaled_queries(queries, features // bias.shape[0])
    attended, softmax = [], []
    for line in _lines(len(x), length):
        by_head = []
        for n, part in heads(bias.shape[0], features):
            by_pair, total = softmax_weights(queries[line, part], keys[line, part], bias[n])
            by_head.append(product(by_pair, values[line, part], dtype) / total)
            softmax.append(by_pair / total)
        attended.append(jnp.concatenate(by_head, axis=1))
    return jnp.concatenate(attended, axis=0), (queries, keys, values), softmax


def _lines(positions: int, length: int) -> list[slice]:
    return [slice(start, start + length) for start in range(0, positions, length)]


def _differentiate(dtype, lines, gradient, bias, weights, of_lines, of_bias, of_weights):
    """The gradient of `_kernel`, written out, so that those of weights are summed in float32 from step to step."""
    zero_at_first((of_bias, of_weights))
    x, gradient = (ref[...].reshape(-1, lines.shape[2]) for ref in (lines, gradient))
    attended, (queries, keys, values), softmax = _attend(x, lines.shape[1], bias, weights, dtype)
    mlp, of_mlp = weights["mlp"], of_weights["mlp"]
    sum_ = x.astype(jnp.float32) + product(attended, weights["output"][...], dtype)
    first, of_first = jax.vjp(normalized_in_kernels, sum_)
    y = _affine(first, weights["norms"][0])
    hidden = jax.nn.relu(dense(y, mlp["hidden"], dtype))
    second, of_second = jax.vjp(normalized_in_kernels, y + dense(hidden, mlp["output"], dtype))

    gradient = _of_affine(second, gradient.astype(jnp.float32), weights["norms"][1], of_weights["norms"][1])
    (gradient,) = of_second(gradient)
    of_hidden = jnp.where(hidden > 0, _of_dense(hidden, gradient, mlp["output"], of_mlp["output"], dtype), 0)
    gradient = gradient + _of_dense(y, of_hidden, mlp["hidden"], of_mlp["hidden"], dtype)
    (gradient,) = of_first(_of_affine(first, gradient, weights["norms"][0], of_weights["norms"][0]))
    of_attended = _of_product(attended, gradient, weights["output"], of_weights["output"], dtype)

    of_qkv = []
    for i, line in enumerate(_lines(len(x), lines.shape[1])):
        by_head = []
        for n, part in heads(bias.shape[0], x.shape[1]):
            of_logits, *found = attention_gradient(
                *(z[line, part] for z in (queries, keys, values)),
                softmax[i * bias.shape[0] + n],
                of_attended[line, part],
            )
            of_bias[n] += of_logits
            by_head.append([scaled_queries(found[0], x.shape[1] // bias.shape[0]), *found[1:]])
        of_qkv.append(jnp.concatenate([part for parts in zip(*by_head, strict=True) for part in parts], axis=1))
    of_qkv = jnp.concatenate(of_qkv, axis=0)
    gradient = gradient + _of_product(x, of_qkv, weights["qkv"], of_weights["qkv"], dtype)
    of_lines[...] = gradient.astype(dtype).reshape(lines.shape)


def _of_product(x, gradient, kernel, of_kernel, dtype):
    """Adds the gradient of a product's kernel to its sum and returns that of x."""
    of_kernel[...] += product(x, gradient, dtype, (0, 0))
    return product(gradient, kernel[...], dtype, (1, 1))


def _of_dense(x, gradient, layer, of_layer, dtype):
    """Adds the gradients of a `Dense` layer's weights to their sums and returns that of x."""
    of_layer["bias"][...] += gradient.sum(axis=0, keepdims=True)
    return _of_product(x, gradient, layer["kernel"], of_layer["kernel"], dtype)


def _of_affine(x, gradient, affine, of_affine):
    """Adds the gradients of scale and shift to their sums and returns that of x."""
    of_affine.scale[...] += (gradient * x).sum(axis=0, keepdims=True)
    of_affine.shift[...] += gradient.sum(axis=0, keepdims=True)
    return gradient * affine.scale[...]


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
    return _affine(normalized_in_kernels(x), affine)


def _affine(x: jax.Array, affine: Affine) -> jax.Array:
    return jax.tree.map(lambda ref: ref[...], affine)(x)
