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
from coltran_jax.nn.head_groups import HeadGroup, Room, conditioned_letters, num_scales_and_shifts
from coltran_jax.nn.kernel_layers import Weights, dense, dense_of, finish, scaled_and_shifted, weights_of
from coltran_jax.nn.kernel_steps import VMEM_BYTES, Lines, Steps

# About so many arrays of a step's lines are in VMEM at once, each number twice as large as in products: what lies
# between products is float32, and a product of float32 takes its factors apart.
_LINES, _LINES_OF_GRADIENT = 12, 25


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
    weights, images = _all_weights_of(params, dtype), [given.x, given.context]
    steps = Steps(given.x.shape, axis, given.norms, (bias, weights), interpret)
    room = Room.of(weights, bias, images, steps.positions, gradient=False)
    kernel = functools.partial(_kernel, switches, dtype)
    (out,) = steps.run(kernel, images, [jax.ShapeDtypeStruct(given.x.shape, dtype)], room)
    return out


def _apply_block_forward(given, params, bias, axis, switches, dtype, interpret):
    return apply_block(given, params, bias, axis, switches, dtype, interpret), (given, params, bias)


def _apply_block_backward(axis, switches, dtype, interpret, saved, gradient):
    given, params, bias = saved
    weights, images = _all_weights_of(params, dtype), [given.x, given.context]
    steps = Steps(given.x.shape, axis, given.norms, (bias, weights), interpret)
    of_images = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), images)
    room = Room.of(weights, bias, images, steps.positions, gradient=True)
    kernel = functools.partial(_differentiate, switches, dtype)
    (of_x, of_context), of_norms, of_bias, of_weights = steps.run(
        kernel, [*images, gradient], of_images, room, sums=True
    )
    _, to_params = jax.vjp(functools.partial(_all_weights_of, dtype=jnp.float32), params)
    return Given(of_x, of_context, of_norms), *to_params(of_weights), of_bias


apply_block.defvjp(_apply_block_forward, _apply_block_backward)


def _all_weights_of(params: dict[str, Any], dtype: jnp.dtype) -> Weights:
    """Shapes the weights of a whole image's kernels: as `weights_of`, with those of conditions."""
    weights = weights_of(params, dtype)
    if "context" in params["attention"]:
        kernel = params["attention"]["context"]
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


def _kernel(switches, dtype, images, norms, bias, weights, room, results):
    attended = _attend(switches, images, bias, weights, room, dtype)
    of_mlp = None
    if "context" in weights["mlp"]:
        of_mlp = _mlp_condition(switches, _mlp_context(weights, room))
    result = finish(_positions(images[0]), attended, weights, _norms(norms, weights), of_mlp, dtype)
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
    """Queries as they meet keys, keys and values of a group of heads (P, D / G) from products of x and the context."""
    parts = dict(zip("qkv", jnp.split(qkv, 3, axis=1), strict=True))
    if switches is not None and projected is not None:
        letters = conditioned_letters(switches)
        scale, shift = switches.cond_att_scale, switches.cond_att_shift
        for letter, its in zip(letters, jnp.split(projected, len(letters), axis=1), strict=True):
            # Of each head its scale and then its shift.
            by_head = [jnp.split(head, scale + shift, axis=1) for head in jnp.split(its, num_heads, axis=1)]
            halves = [jnp.concatenate(of_heads, axis=1) for of_heads in zip(*by_head, strict=True)]
            parts[letter] = attention_affine(halves, scale, shift, switches.cond_att_act)(parts[letter])
    parts["q"] = scaled_queries(parts["q"], parts["q"].shape[1] // num_heads)
    return tuple(parts.values())


def _mlp_context(weights, room):
    """The projection of the context for the MLP, (P, D) or (P, 2 D) float32."""
    by_group = [jnp.split(room.products.mlp[i], num_scales_and_shifts(weights), axis=1) for i in range(room.groups)]
    projected = jnp.concatenate([part for parts in zip(*by_group, strict=True) for part in parts], axis=1)
    return projected.astype(jnp.float32) + weights["mlp"]["context"]["bias"][...]


def _attend(switches, images, bias, weights, room, dtype):
    """Attention of lines before its last product.

    Args:
        switches: see `apply_block`.
        images: references to x and to the context.
        bias: reference, (N, L, L).
        weights: references, of `_all_weights_of`.
        room: what is kept.
        dtype: of products.

    Returns:
        (P, D).
    """

    def attend(group):
        x, context = images
        products = [
            None if kernel is None else product(_positions(image), _beside(kernel), dtype)
            for image, kernel in zip((x, context, context), group.kernels(weights, switches), strict=True)
        ]
        for kept, its in zip(room.products, products, strict=True):
            if kept is not None:
                kept[group.index] = its.astype(dtype)
        combined = _queries_keys_values(switches, group.num_heads, *products[:2])
        queries, keys, values = (part.astype(dtype) for part in combined)
        for line in _lines(len(queries), bias.shape[1]):
            for n, part in group.heads(queries.shape[1]):
                by_pair, total = softmax_weights(queries[line, part], keys[line, part], bias[n])
                attended = product(by_pair, values[line, part], dtype) / total
                room.attended[group.index, line, part] = attended.astype(dtype)
                if room.softmax is not None:
                    room.softmax[n, line] = by_pair / total

    HeadGroup.each(room, bias, attend)
    return jnp.concatenate([room.attended[index] for index in range(room.groups)], axis=1)


def _lines(positions: int, length: int) -> list[slice]:
    return [slice(start, start + length) for start in range(0, positions, length)]


def _beside(parts: list[Any]) -> jax.Array:
    """References to matrices -> these side by side."""
    return jnp.concatenate([part[...] for part in parts], axis=1)


def _differentiate(switches, dtype, images, norms, bias, weights, room, results, of_norms, of_bias, of_weights):
    """The gradient of `_kernel`, written out, so that those of weights are summed in float32 from step to step."""
    mlp, of_mlp = weights["mlp"], of_weights["mlp"]
    norms = list(zip(_norms(norms, weights), _norms(of_norms, of_weights), strict=True))

    attended = _attend(switches, images[:2], bias, weights, room, dtype)
    x, context, gradient = map(_positions, images)
    sum_ = x.astype(jnp.float32) + product(attended, weights["output"][...], dtype)
    first, of_first = jax.vjp(normalized_in_kernels, sum_)
    y = scaled_and_shifted(first, norms[0][0])
    hidden = jax.nn.relu(dense(y, mlp["hidden"], dtype))
    result = dense(hidden, mlp["output"], dtype)
    if "context" in mlp:
        projected = _mlp_context(weights, room)
        result, of_modulation = jax.vjp(lambda y, c: _mlp_condition(switches, c)(y), result, projected)
    second, of_second = jax.vjp(normalized_in_kernels, y + result)

    (gradient,) = of_second(_of_affine(second, gradient.astype(jnp.float32), *norms[1]))
    of_result = gradient
    if "context" in mlp:
        of_result, of_projected = of_modulation(gradient)
        of_mlp["context"]["bias"][...] += of_projected.sum(axis=0, keepdims=True)
        parts = jnp.split(of_projected.astype(dtype), num_scales_and_shifts(weights) * room.groups, axis=1)
        for index in range(room.groups):
            room.products.mlp[index] = jnp.concatenate(parts[index :: room.groups], axis=1)
    of_hidden = jnp.where(hidden > 0, _of_dense(hidden, of_result, mlp["output"], of_mlp["output"], dtype), 0)
    gradient = gradient + _of_dense(y, of_hidden, mlp["hidden"], of_mlp["hidden"], dtype)
    (gradient,) = of_first(_of_affine(first, gradient, *norms[0]))
    of_attended = _of_product(attended, gradient, [weights["output"]], [of_weights["output"]], dtype)

    for index, part in heads(room.groups, of_attended.shape[1]):
        room.attended[index] = of_attended[:, part].astype(dtype)
    room.of_images[0][...] = gradient
    if context is not None:
        room.of_images[1][...] = jnp.zeros(context.shape, jnp.float32)
    _differentiate_products(switches, dtype, images[:2], bias, weights, room, of_bias, of_weights)
    for of_image, result in zip(room.of_images, results, strict=True):
        if of_image is not None:
            _store(of_image[...], result)


def _differentiate_products(switches, dtype, images, bias, weights, room, of_bias, of_weights):
    """Adds the gradients of what `_attend` computes, and of the MLP's product with the context, given in `room`."""
    x, context = images
    of_x, of_context = room.of_images

    def differentiate(group):
        *products, of_mlp_context = (None if kept is None else kept[group.index] for kept in room.products)
        products = jax.tree.map(lambda its: its.astype(jnp.float32), products)
        combined, to_products = jax.vjp(functools.partial(_queries_keys_values, switches, group.num_heads), *products)
        queries, keys, values = (part.astype(dtype) for part in combined)
        of_combined = []
        for line in _lines(len(queries), bias.shape[1]):
            by_head = []
            for n, part in group.heads(queries.shape[1]):
                its = (z[line, part] for z in (queries, keys, values))
                of_attended = room.attended[group.index, line, part]
                of_logits, *found = attention_gradient(*its, room.softmax[n, line], of_attended)
                of_bias[n] += of_logits
                by_head.append(found)
            of_combined.append([jnp.concatenate(parts, axis=1) for parts in zip(*by_head, strict=True)])
        of_qkv, of_conditions = to_products(tuple(jnp.concatenate(parts) for parts in zip(*of_combined, strict=True)))
        kernels, of_kernels = (group.kernels(its, switches) for its in (weights, of_weights))
        gradients = (of_qkv, of_conditions, of_mlp_context)
        factors, of_factors = (x, context, context), (of_x, of_context, of_context)
        for factor, of_factor, gradient, *kernel in zip(
            factors, of_factors, gradients, kernels, of_kernels, strict=True
        ):
            if gradient is not None:
                of_factor[...] += _of_product(_positions(factor), gradient, *kernel, dtype)

    HeadGroup.each(room, bias, differentiate)


def _of_product(x, gradient, kernel, of_kernel, dtype):
    """Adds the gradient of a product's kernel, which may be in parts, to its sum and returns that of x."""
    parts = jnp.split(product(x, gradient, dtype, (0, 0)), len(of_kernel), axis=1)
    for its, part in zip(of_kernel, parts, strict=True):
        its[...] += part
    return product(gradient, _beside(kernel), dtype, (1, 1))


def _of_dense(x, gradient, layer, of_layer, dtype):
    """Adds the gradients of a `Dense` layer's weights to their sums and returns that of x."""
    of_layer["bias"][...] += gradient.sum(axis=0, keepdims=True)
    return _of_product(x, gradient, [layer["kernel"]], [of_layer["kernel"]], dtype)


def _of_affine(x, gradient, affine, of_affine):
    """Adds the gradients of scale and shift to their sums and returns that of x."""
    of_affine.scale[...] += (gradient * x).sum(axis=0, keepdims=True)
    of_affine.shift[...] += gradient.sum(axis=0, keepdims=True)
    return gradient * affine.scale[...]
