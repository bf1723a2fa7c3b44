"""An axial block as one Pallas kernel for TPUs, for whole images, and its gradient as another.

The block's weights stay in the memory next to the TPU's arithmetic (VMEM), and so does all that becomes of a line on
its way through: an image is read once and written once, where XLA's operations read and write it a dozen times. So do
the sums of the weights' gradients. Columns are turned into lines there, so that no image is turned round in memory.
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
# Positions of a row that a TPU keeps beside each other.
_TILE = 8


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
    steps = _Steps(given, params, bias, axis, dtype, interpret)
    (out,) = steps.run(_kernel, switches, [given.x, given.context], [jax.ShapeDtypeStruct(given.x.shape, dtype)])
    return out


def _apply_block_forward(given, params, bias, axis, switches, dtype, interpret):
    return apply_block(given, params, bias, axis, switches, dtype, interpret), (given, params, bias)


def _apply_block_backward(axis, switches, dtype, interpret, saved, gradient):
    steps = _Steps(*saved, axis, dtype, interpret)
    images = [saved[0].x, saved[0].context]
    of_images = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), images)
    (of_x, of_context), of_norms, of_bias, of_weights = steps.run(
        _differentiate, switches, [*images, gradient], of_images, sums=True
    )
    _, to_params = jax.vjp(functools.partial(_all_weights_of, dtype=jnp.float32), saved[1])
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
    num_bytes += (_LINES_OF_GRADIENT if gradient else _LINES) * POSITIONS * shape[-1] * 4
    if axis == "column":
        # A step's columns, those of the next step, and columns as lines: of the input, the context, and so on.
        _, length, others, features = shape
        columns = columns_a_step(others, lines_a_step(others, length))
        conditional = "context" in params["attention"] or "context" in params["mlp"]
        images = 2 + gradient + conditional * (1 + gradient)
        num_bytes += 3 * images * columns * length * features * jnp.dtype(dtype).itemsize
    return num_bytes <= pltpu.get_tpu_info().vmem_capacity_bytes


def _num_cores(interpret: bool) -> int:
    return 1 if interpret else pltpu.get_tpu_info().num_cores


class _Steps:
    """The steps of a kernel, each some lines of one image.

    Attributes:
        cores: of a TPU that take some images each.
    """

    def __init__(
        self, given: Given, params: dict[str, Any], bias: jax.Array, axis: str, dtype: jnp.dtype, interpret: bool
    ):
        self._stay = (bias, _all_weights_of(params, dtype))
        self._norms, self._axis, self._dtype, self._interpret = given.norms, axis, dtype, interpret
        batch, *sides, self._features = given.x.shape
        self._others, self._length = sides if axis == "row" else sides[::-1]
        self._group = lines_a_step(self._others, self._length)
        self._lines = self._group if axis == "row" else columns_a_step(self._others, self._group)
        self._once = None if interpret else pl.Buffered(1)
        self.cores = math.gcd(batch, _num_cores(interpret))
        self._images = batch // self.cores

    def run(self, kernel, switches, images: list[jax.Array | None], out: list[Any], *, sums: bool = False) -> Any:
        """Runs a kernel.

        Args:
            kernel: takes the switches, the type of products, and references to lines of the images, norms, bias,
                weights, lines of the results and, where there are sums, those of norms, bias and weights.
            switches: see `apply_block`.
            images: (B, H, W, D) each.
            out: shapes and types of the images that result.
            sums: whether what is given beside images has gradients.

        Returns:
            The images that result; with sums a tuple of these and of the sums of norms, bias and weights.
        """
        inputs, shapes, out_specs = (images, self._norms, *self._stay), (out,), (self._of_lines(out),)
        stay = jax.tree.map(self._stays, self._stay)
        norms = jax.tree.map(self._of_image, self._norms)
        if sums:
            of_stay = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.cores, *x.shape), jnp.float32), self._stay)
            shapes = (out, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._norms), *of_stay)
            out_specs = (*out_specs, norms, *jax.tree.map(self._of_core, self._stay))
        if not self._interpret:
            # Not where XLA finds room for each block: equal kernels are compiled once.
            inputs = jax.tree.map(lambda x: pltpu.with_memory_space_constraint(x, pltpu.HBM), inputs)
            shapes = jax.tree.map(lambda x: pltpu.HBM(x.shape, x.dtype), shapes)
        columns = self._group if self._axis == "column" else None
        results = pl.pallas_call(
            functools.partial(_take_step, functools.partial(kernel, switches, self._dtype), columns),
            grid=(self.cores, self._images, self._others // self._lines),
            in_specs=(self._of_lines(images), norms, *stay),
            out_specs=out_specs,
            out_shape=shapes,
            scratch_shapes=() if columns is None else jax.tree.map(self._room, (images, out)),
            compiler_params=pltpu.CompilerParams(
                vmem_limit_bytes=_VMEM_BYTES, dimension_semantics=("parallel", "arbitrary", "arbitrary")
            ),
            cost_estimate=self._cost(jax.tree.leaves((images, out)), sums),
            interpret=self._interpret,
            name="axial_block_gradient" if sums else "axial_block",
        )(*inputs)
        if not sums:
            return results[0]
        return *results[:2], *jax.tree.map(lambda x: x.sum(axis=0), results[2:])

    def _cost(self, moved, sums):
        bias, weights = self._stay
        positions = self.cores * self._images * self._others * self._length
        # All but biases, scales and shifts, (1, D).
        kernels = sum(x.size for x in jax.tree.leaves(weights) if x.shape[0] > 1)
        # With gradients all is computed again, and each product has two.
        multiply_adds = (3 if sums else 1) * positions * (kernels + 2 * self._length * self._features)
        return cost(
            multiply_adds, sum(x.size * x.dtype.itemsize for x in moved), positions * self._length * bias.shape[0]
        )

    def _of_lines(self, images):
        def spec(x):
            if self._axis == "row":
                return pl.BlockSpec((None, self._lines, *x.shape[2:]), lambda c, b, a: (self._image(c, b), a, 0, 0))
            block = (None, self._length, self._lines, x.shape[3])
            return pl.BlockSpec(block, lambda c, b, a: (self._image(c, b), 0, a, 0))

        return jax.tree.map(spec, images)

    def _room(self, x):
        return pltpu.VMEM((self._lines, self._length, x.shape[3]), x.dtype)

    def _image(self, core, number):
        return core * self._images + number

    def _of_image(self, x):
        return pl.BlockSpec((None, *x.shape[1:]), lambda c, b, a: (self._image(c, b), 0, 0))

    def _stays(self, x):
        return pl.BlockSpec(x.shape, lambda c, b, a: (0,) * x.ndim, pipeline_mode=self._once)

    def _of_core(self, x):
        """A sum of a core's steps, shaped as x."""
        return pl.BlockSpec((None, *x.shape), lambda c, b, a: (c, *(0,) * x.ndim), pipeline_mode=self._once)


def columns_a_step(number: int, group: int) -> int:
    """Returns how many of so many columns a step fetches to take `group` at a time: whole tiles of memory, or all."""
    whole = (size for size in range(group, number, group) if number % size == 0 and size % _TILE == 0)
    return next(whole, number)


def _take_step(kernel, columns, images, norms, bias, weights, results, *rest):
    """Applies a kernel to the lines of a step.

    Args:
        kernel: see `_Steps.run`.
        columns: how many it takes at a time; None for rows, which it takes all at once.
        images: references to rows (A, L, D), or to columns as the image has them (L, A, D).
        norms: see `_Steps.run`.
        bias: see there.
        weights: see there.
        results: references to images that result.
        rest: sums, if there are any, and of columns room for images and results as lines (A, L, D).
    """
    sums, room = (rest, None) if columns is None else (rest[:-2], rest[-2:])
    if sums:
        of_norms, *of_stay = sums
        zero_at_first(of_norms, 2)
        zero_at_first(of_stay, 1, 2)
    if room is None:
        kernel(images, norms, bias, weights, results, *sums)
        return
    lines, lines_of_results = room
    _turn(images, lines)

    def take(number, _):
        part = pl.ds(number * columns, columns)
        some, some_results = ([ref if ref is None else ref.at[part] for ref in refs] for refs in room)
        kernel(some, norms, bias, weights, some_results, *sums)

    jax.lax.fori_loop(0, jax.tree.leaves(lines)[0].shape[0] // columns, take, None)
    _turn(lines_of_results, results)


def _turn(source: list[Any], target: list[Any]) -> None:
    for ref, turned in zip(*map(jax.tree.leaves, (source, target)), strict=True):
        turned[...] = ref[...].swapaxes(0, 1)


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
