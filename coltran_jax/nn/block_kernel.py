"""An axial block as one Pallas kernel for TPUs, for whole images, and its gradient as another.

The block's weights stay in the memory next to the TPU's arithmetic (VMEM), and so does all that becomes of a line on
its way through: an image is read once and written once, where XLA's operations read and write it a dozen times. So do
the sums of the weights' gradients.
"""

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from coltran_jax.config import DecoderConfig
from coltran_jax.nn.attention_kernels import (
    POSITIONS,
    attention_gradient,
    cost,
    heads,
    lines_a_step,
    product,
    scaled_queries,
    softmax_weights,
    zero_at_first,
)
from coltran_jax.nn.conditioning import Affine, attention_affine, mlp_affine, normalized_in_kernels

Weights = dict[str, Any]

_VMEM_BYTES = 64 * 2**20
# About so many arrays of a step's lines, in float32, are in VMEM at once.
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
        x: (B, A, L, D).
        context: (B, A, L, C), of the attention and the MLP; None where neither is conditional.
        norms: scale and shift of the two norms, (B, 1, D) float32 each; None for what is a norm's own.
    """

    x: jax.Array
    context: jax.Array | None
    norms: list[Affine | None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def apply_block(
    given: Given,
    params: dict[str, Any],
    bias: jax.Array,
    switches: DecoderConfig | None,
    dtype: jnp.dtype,
    interpret: bool,
) -> jax.Array:
    """Applies an `AxialBlock` to its lines. The gradient is a kernel, too, and keeps what is given alone.

    Args:
        given: x and its conditions.
        params: of the block.
        bias: (N, L, L) float32, of its attention, with the mask.
        switches: of its conditional layers; None for none.
        dtype: of matrix products and of the result. Sums, and what lies between products, are float32.
        interpret: run step by step on any device, for tests.

    Returns:
        (B, A, L, D).
    """
    steps = _Steps(given, params, bias, dtype, interpret)
    out = jax.ShapeDtypeStruct(given.x.shape, dtype)
    return steps.run(_kernel, switches, (), steps.specs[0].x, out, times=1)


def _apply_block_forward(given, params, bias, switches, dtype, interpret):
    return apply_block(given, params, bias, switches, dtype, interpret), (given, params, bias)


def _apply_block_backward(switches, dtype, interpret, saved, gradient):
    steps = _Steps(*saved, dtype, interpret)
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), steps.inputs[0])
    sums = jax.tree.map(lambda x: jax.ShapeDtypeStruct((steps.cores, *x.shape), jnp.float32), steps.inputs[1:])
    specs = (steps.specs[0], *jax.tree.map(steps.of_core, steps.inputs[1:]))
    # All is computed again, and each product has two gradients.
    of_given, *summed = steps.run(_differentiate, switches, (gradient,), specs, (given, *sums), times=3)
    of_bias, of_weights = jax.tree.map(lambda x: x.sum(axis=0), summed)
    _, to_params = jax.vjp(functools.partial(_all_weights_of, dtype=jnp.float32), saved[1])
    return of_given, *to_params(of_weights), of_bias


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


def has_room(params: dict[str, Any], dtype: jnp.dtype, interpret: bool, *, gradient: bool) -> bool:
    """Returns whether a block's weights, and the sums of their gradients, fit in a TPU's VMEM beside a step's lines."""
    if interpret:
        return True
    weights = jax.eval_shape(functools.partial(_all_weights_of, dtype=dtype), params)
    num_bytes = sum(x.size * (x.dtype.itemsize + 4 * gradient) for x in jax.tree.leaves(weights))
    lines = POSITIONS * weights["output"].shape[0] * 4
    return num_bytes + (_LINES_OF_GRADIENT if gradient else _LINES) * lines <= pltpu.get_tpu_info().vmem_capacity_bytes


def _num_cores(interpret: bool) -> int:
    return 1 if interpret else pltpu.get_tpu_info().num_cores


class _Steps:
    """The steps of a kernel, each some lines of one image.

    Attributes:
        inputs: what is given, the bias, and the weights.
        specs: what a step takes of each.
        cores: of a TPU that take some images each.
    """

    def __init__(self, given: Given, params: dict[str, Any], bias: jax.Array, dtype: jnp.dtype, interpret: bool):
        self.inputs = (given, bias, _all_weights_of(params, dtype))
        self._dtype, self._interpret = dtype, interpret
        self._group = lines_a_step(*given.x.shape[1:3])
        self._once = None if interpret else pl.Buffered(1)
        self.cores = math.gcd(given.x.shape[0], _num_cores(interpret))
        self._images = given.x.shape[0] // self.cores

        def of_image(x):
            return pl.BlockSpec((None, *x.shape[1:]), lambda c, b, a: (c * self._images + b, 0, 0))

        def stays(x):
            return pl.BlockSpec(x.shape, lambda c, b, a: (0,) * x.ndim, pipeline_mode=self._once)

        images = jax.tree.map(self._lines, (given.x, given.context))
        of_given = Given(*images, jax.tree.map(of_image, given.norms))
        self.specs = (of_given, *jax.tree.map(stays, self.inputs[1:]))

    def _lines(self, x):
        return pl.BlockSpec((None, self._group, *x.shape[2:]), lambda c, b, a: (c * self._images + b, a, 0, 0))

    def of_core(self, x):
        """A sum of a core's steps, shaped as x."""
        return pl.BlockSpec((None, *x.shape), lambda c, b, a: (c, *(0,) * x.ndim), pipeline_mode=self._once)

    def run(self, kernel, switches, images: tuple[jax.Array, ...], out_specs: Any, out: Any, *, times: int) -> Any:
        """Runs a kernel.

        Args:
            kernel: takes the switches, the type of products, references to `inputs`, to lines of `images`, and to its
                results.
            switches: see `apply_block`.
            images: (B, A, L, D) each.
            out_specs: what a step gives of each result.
            out: shapes and types of the results.
            times: how often it computes a block, for the cost.
        """
        given, bias, weights = self.inputs
        batch, others, length, features = given.x.shape
        positions = batch * others * length
        # All but biases, scales and shifts, (1, D).
        kernels = [x for x in jax.tree.leaves(weights) if x.shape[0] > 1]
        moved = [x for x in jax.tree.leaves((given, images, out)) if x.ndim == 4]
        inputs = (*self.inputs, *images)
        if not self._interpret:
            # Not where XLA finds room for each block: equal kernels are compiled once.
            inputs = jax.tree.map(lambda x: pltpu.with_memory_space_constraint(x, pltpu.HBM), inputs)
            out = jax.tree.map(lambda x: pltpu.HBM(x.shape, x.dtype), out)
        return pl.pallas_call(
            functools.partial(kernel, switches, self._dtype),
            grid=(self.cores, self._images, others // self._group),
            in_specs=(*self.specs, *map(self._lines, images)),
            out_specs=out_specs,
            out_shape=out,
            compiler_params=pltpu.CompilerParams(
                vmem_limit_bytes=_VMEM_BYTES, dimension_semantics=("parallel", "arbitrary", "arbitrary")
            ),
            cost_estimate=cost(
                times * positions * (sum(x.size for x in kernels) + 2 * length * features),
                sum(x.size * x.dtype.itemsize for x in moved),
                positions * length * bias.shape[0],
            ),
            interpret=self._interpret,
            name="axial_block" if times == 1 else "axial_block_gradient",
        )(*inputs)


def _kernel(switches, dtype, given, bias, weights, out):
    x, context = _positions((given.x, given.context))
    attended, *_ = _attend(switches, x, context, bias, weights, dtype)
    of_mlp = None
    if "context" in weights["mlp"]:
        of_mlp = _mlp_condition(switches, dense(context, weights["mlp"]["context"], dtype))
    result = finish(x, attended, weights, _norms(given, weights), of_mlp, dtype)
    out[...] = result.astype(dtype).reshape(out.shape)


def _positions(images: Any) -> Any:
    """References to lines (A, L, D) -> (A L, D)."""
    return jax.tree.map(lambda ref: ref[...].reshape(-1, ref.shape[-1]), images)


def _norms(given: Given, weights: Weights) -> list[Affine]:
    return [conditional or own for conditional, own in zip(given.norms, weights["norms"], strict=True)]


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


def _differentiate(switches, dtype, given, bias, weights, gradient, of_given, of_bias, of_weights):
    """The gradient of `_kernel`, written out, so that those of weights are summed in float32 from step to step."""
    zero_at_first((of_bias, of_weights), 1, 2)
    zero_at_first(of_given.norms, 2)
    x, context, gradient = _positions((given.x, given.context, gradient))
    mlp, of_mlp = weights["mlp"], of_weights["mlp"]
    norms = list(zip(_norms(given, weights), _norms(of_given, of_weights), strict=True))
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
    of_given.x[...] = gradient.astype(of_given.x.dtype).reshape(of_given.x.shape)
    if "context" in weights:
        of_context += _of_product(context, of_conditions, weights["context"], of_weights["context"], dtype)
    if context is not None:
        of_given.context[...] = of_context.astype(of_given.context.dtype).reshape(of_given.context.shape)


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
