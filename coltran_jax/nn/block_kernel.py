"""An axial block as one Pallas kernel for TPUs, for whole images, and its gradient as another.

The block's weights stay in the memory next to the TPU's arithmetic (VMEM), and so does all that becomes of a line on
its way through: an image is read once and written once, where XLA's operations read and write it a dozen times. So do
the sums of the weights' gradients.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from coltran_jax.config import DecoderConfig
from coltran_jax.nn.attention_kernels import (
    POSITIONS,
    attention_gradient,
    heads,
    product,
    scaled_queries,
    softmax_weights,
)
from coltran_jax.nn.conditioning import Affine, attention_affine, mlp_affine, normalized_in_kernels
from coltran_jax.nn.kernel_steps import VMEM_BYTES, Lines, Steps

Weights = dict[str, Any]

# About so many arrays of a step's lines are in VMEM at once, each number twice as large as in products: what lies
# between products is float32, and a product of float32 takes its factors apart.
_LINES, _LINES_OF_GRADIENT = 12, 25


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


@flax.struct.dataclass
class Given:
    """The input of a block, and what it is conditioned on.

    Attributes:
        x: (B, H, W, D).
        context: (B, H, W, C), of the attention and the MLP; None where neither is conditional.
        norms: scale and shift of the two norms, (B, 1, D) float32 each; None for what is a norm's own.
    """

    x: jax.Array
    context: jax.Array | None
    norms: list[Affine | None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def apply_block(
    given: Given,
    params: dict[str, Any],
    bias: jax.Array,
    axis: str,
    switches: DecoderConfig | None,
    dtype: jnp.dtype,
    interpret: bool,
) -> jax.Array:
    """Applies an `AxialBlock` to images. The gradient is a kernel, too, and keeps what is given alone.

    Args:
        given: x and its conditions.
        params: of the block.
        bias: (N, L, L) float32, of its attention, with the mask.
        axis: "row" or "column", of its attention.
        switches: of its conditional layers; None for none.
        dtype: of matrix products and of the result. Sums, and what lies between products, are float32.
        interpret: run step by step on any device, for tests.

    Returns:
        (B, H, W, D).
    """
    steps = Steps(given.x.shape, axis, given.norms, (bias, _all_weights_of(params, dtype)), interpret)
    kernel = functools.partial(_kernel, switches, dtype)
    (out,) = steps.run(kernel, [given.x, given.context], [jax.ShapeDtypeStruct(given.x.shape, dtype)])
    return out


def _apply_block_forward(given, params, bias, axis, switches, dtype, interpret):
    return apply_block(given, params, bias, axis, switches, dtype, interpret), (given, params, bias)


def _apply_block_backward(axis, switches, dtype, interpret, saved, gradient):
    given, params, bias = saved
    steps = Steps(given.x.shape, axis, given.norms, (bias, _all_weights_of(params, dtype)), interpret)
    images = [given.x, given.context]
    of_images = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), images)
    (of_x, of_context), of_norms, of_bias, of_weights = steps.run(
        functools.partial(_differentiate, switches, dtype), [*images, gradient], of_images, sums=True
    )
    _, to_params = jax.vjp(functools.partial(_all_weights_of, dtype=jnp.float32), params)
    return Given(of_x, of_context, of_norms), *to_params(of_weights), of_bias


apply_block.defvjp(_apply_block_forward, _apply_block_backward)


def _all_weights_of(params: dict[str, Any], dtype: jnp.dtype) -> Weights:
    """Shapes the weights of a whole image's kernels: as `weights_of`, with those of conditions."""
    weights = weights_of(params, dtype)
    if "context" in params["attention"]:
        kernel = params["attention"]["context"]
        # Scale and shift of each head in turn -> the scales of all heads, and then their shifts.
        kernel = kernel.reshape(*kernel.shape[:3], -1, params["attention"]["qkv"].shape[-1]).swapaxes(2, 3)
        weights["context"] = kernel.reshape(kernel.shape[0], -1).astype(dtype)
    if "context" in params["mlp"]:
        weights["mlp"]["context"] = dense_of(params["mlp"]["context"], dtype)
    return weights


def has_room(
    params: dict[str, Any], shape: tuple[int, ...], axis: str, dtype: jnp.dtype, interpret: bool, *, gradient: bool
) -> bool:
    """Returns whether a block's weights and the sums of their gradients fit in a TPU's VMEM beside a step's lines.

    Args:
        params: of the block.
        shape: of its input, (B, H, W, D).
        axis: see `apply_block`.
        dtype: see there.
        interpret: see there.
        gradient: of the block, not its result.
    """
    if interpret:
        return True
    weights = jax.eval_shape(functools.partial(_all_weights_of, dtype=dtype), params)
    num_bytes = sum(x.size * (x.dtype.itemsize + 4 * gradient) for x in jax.tree.leaves(weights))
    itemsize = jnp.dtype(dtype).itemsize
    num_bytes += (_LINES_OF_GRADIENT if gradient else _LINES) * POSITIONS * shape[-1] * 2 * itemsize
    if axis == "column":
        # A step's columns, those of the next step, and columns as lines: of the input, the context, and so on.
        lines = Lines.of(shape, axis)
        conditional = "context" in params["attention"] or "context" in params["mlp"]
        images = 2 + gradient + conditional * (1 + gradient)
        num_bytes += 3 * images * lines.fetched * lines.length * shape[-1] * itemsize
    return num_bytes <= min(VMEM_BYTES, pltpu.get_tpu_info().vmem_capacity_bytes)


def _kernel(switches, dtype, images, norms, bias, weights, results):
    x, context = map(_positions, images)
    attended, *_ = _attend(switches, x, context, bias, weights, dtype)
    of_mlp = None
    if "context" in weights["mlp"]:
        of_mlp = _mlp_condition(switches, dense(context, weights["mlp"]["context"], dtype))
    result = finish(x, attended, weights, _norms(norms, weights), of_mlp, dtype)
    _store(result, results[0])


def _positions(lines: Any) -> jax.Array | None:
    """A reference to lines (A, L, D) -> (A L, D)."""
    return None if lines is None else lines[...].reshape(-1, lines.shape[-1])


def _store(x: jax.Array, lines: Any) -> None:
    lines[...] = x.astype(lines.dtype).reshape(lines.shape)


def _norms(norms: list[Affine | None], weights: Weights) -> list[Affine]:
    return [conditional or own for conditional, own in zip(norms, weights["norms"], strict=True)]


def _mlp_condition(switches: DecoderConfig, projected: jax.Array) -> Affine:
    return mlp_affine(projected, switches.cond_mlp, switches.cond_mlp_act)


def _queries_keys_values(
    switches: DecoderConfig | None, num_heads: int, qkv: jax.Array, projected: jax.Array | None
) -> tuple[jax.Array, ...]:
    """Queries as they meet keys, keys and values (P, D) from the product of x (P, 3 D) and that of the context."""
    parts = dict(zip("qkv", jnp.split(qkv, 3, axis=1), strict=True))
    if switches is not None and projected is not None:
        letters = [letter for letter in "qkv" if getattr(switches, f"cond_att_{letter}")]
        scale, shift = switches.cond_att_scale, switches.cond_att_shift
        for letter, its in zip(letters, jnp.split(projected, len(letters), axis=1), strict=True):
            halves = jnp.split(its, scale + shift, axis=1)
            parts[letter] = attention_affine(halves, scale, shift, switches.cond_att_act)(parts[letter])
    parts["q"] = scaled_queries(parts["q"], parts["q"].shape[1] // num_heads)
    return tuple(parts.values())


def _attend(switches, x, context, bias, weights, dtype):
    """Attention of lines before its last product.

    Args:
        switches: see `apply_block`.
        x: (P, D), lines one after the other.
        context: (P, C) or None.
        bias: reference, (N, L, L).
        weights: references, of `_all_weights_of`.
        dtype: of products.

    Returns:
        What is attended (P, D) float32; queries, keys and values (P, D); softmax weights by line and head (L, L); and
        what gives the gradients of the two products of `_queries_keys_values` from those of its results.
    """
    num_heads, length, _ = bias.shape
    products = [product(x, weights["qkv"][...], dtype), None]
    if "context" in weights:
        products[1] = product(context, weights["context"][...], dtype)
    combined, to_products = jax.vjp(functools.partial(_queries_keys_values, switches, num_heads), *products)
    queries, keys, values = (part.astype(dtype) for part in combined)
    attended, softmax = [], []
    for line in _lines(len(x), length):
        by_head = []
        for n, part in heads(num_heads, x.shape[1]):
            by_pair, total = softmax_weights(queries[line, part], keys[line, part], bias[n])
            by_head.append(product(by_pair, values[line, part], dtype) / total)
            softmax.append(by_pair / total)
        attended.append(jnp.concatenate(by_head, axis=1))
    return jnp.concatenate(attended, axis=0), (queries, keys, values), softmax, to_products


def _lines(positions: int, length: int) -> list[slice]:
    return [slice(start, start + length) for start in range(0, positions, length)]


def _differentiate(switches, dtype, images, norms, bias, weights, results, of_norms, of_bias, of_weights):
    """The gradient of `_kernel`, written out, so that those of weights are summed in float32 from step to step."""
    x, context, gradient = map(_positions, images)
    mlp, of_mlp = weights["mlp"], of_weights["mlp"]
    norms = list(zip(_norms(norms, weights), _norms(of_norms, of_weights), strict=True))
    of_context = 0.0

    attended, (queries, keys, values), softmax, to_products = _attend(switches, x, context, bias, weights, dtype)
    sum_ = x.astype(jnp.float32) + product(attended, weights["output"][...], dtype)
    first, of_first = jax.vjp(normalized_in_kernels, sum_)
    y = _affine(first, norms[0][0])
    hidden = jax.nn.relu(dense(y, mlp["hidden"], dtype))
    result = dense(hidden, mlp["output"], dtype)
    if "context" in mlp:
        projected = dense(context, mlp["context"], dtype)
        result, of_modulation = jax.vjp(lambda y, c: _mlp_condition(switches, c)(y), result, projected)
    second, of_second = jax.vjp(normalized_in_kernels, y + result)

    (gradient,) = of_second(_of_affine(second, gradient.astype(jnp.float32), *norms[1]))
    of_result = gradient
    if "context" in mlp:
        of_result, of_projected = of_modulation(gradient)
        of_context = _of_dense(context, of_projected, mlp["context"], of_mlp["context"], dtype)
    of_hidden = jnp.where(hidden > 0, _of_dense(hidden, of_result, mlp["output"], of_mlp["output"], dtype), 0)
    gradient = gradient + _of_dense(y, of_hidden, mlp["hidden"], of_mlp["hidden"], dtype)
    (gradient,) = of_first(_of_affine(first, gradient, *norms[0]))
    of_attended = _of_product(attended, gradient, weights["output"], of_weights["output"], dtype)

    of_qkv = []
    num_heads, length, _ = bias.shape
    for i, line in enumerate(_lines(len(x), length)):
        by_head = []
        for n, part in heads(num_heads, x.shape[1]):
            its = (z[line, part] for z in (queries, keys, values))
            of_logits, *found = attention_gradient(*its, softmax[i * num_heads + n], of_attended[line, part])
            of_bias[n] += of_logits
            by_head.append(found)
        of_qkv.append([jnp.concatenate(parts, axis=1) for parts in zip(*by_head, strict=True)])
    of_qkv, of_conditions = to_products(tuple(jnp.concatenate(parts) for parts in zip(*of_qkv, strict=True)))
    gradient = gradient + _of_product(x, of_qkv, weights["qkv"], of_weights["qkv"], dtype)
    _store(gradient, results[0])
    if "context" in weights:
        of_context += _of_product(context, of_conditions, weights["context"], of_weights["context"], dtype)
    if context is not None:
        _store(of_context, results[1])


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
