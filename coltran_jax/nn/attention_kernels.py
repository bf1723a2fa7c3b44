"""Axial attention as Pallas kernels for TPUs, which take what `coltran_jax.nn.attention` computes by XLA's operations.

XLA writes the logits of every pair of positions to memory and reads them again for each step of the softmax. Here a
line - a row or a column of an image - stays in the memory next to the TPU's arithmetic (VMEM) until its result is
known. All take (..., D), the heads' features beside each other.

Each kernel has an argument `interpret`: run it step by step on any device, for tests.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from coltran_jax.nn.linear import matmul_precision

# Positions of a step over lines, as whole lines.
POSITIONS = 512
# Lines or images of a step of the decoders' kernels at most; of these whole bfloat16 vectors, the least number.
_TILE = 32
_LEAST = 16
# Positions at once in the decoders' attention.
_CHUNK = 8


def product(x: jax.Array, y: jax.Array, dtype: jnp.dtype, contract: tuple[int, int] = (1, 0)) -> jax.Array:
    """Product of two matrices in a type, with sums in float32, over an axis of each."""
    return jax.lax.dot_general(
        x.astype(dtype),
        y.astype(dtype),
        (((contract[0],), (contract[1],)), ((), ())),
        precision=matmul_precision(dtype),
        preferred_element_type=jnp.float32,
    )


def scaled_queries(queries: jax.Array, width: int) -> jax.Array:
    """Queries as they meet keys, of K features, `width`."""
    return queries * width**-0.5


def cost(multiply_adds: float, num_bytes: float, exponentials: float) -> pl.CostEstimate:
    """Describes a kernel's cost to XLA, which does not look into kernels."""
    return pl.CostEstimate(
        flops=int(2 * multiply_adds), bytes_accessed=int(num_bytes), transcendentals=int(exponentials)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend_lines(queries: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array, interpret: bool) -> jax.Array:
    """Softmax attention within each line: (B, A, L, D) three times, bias (N, L, L) float32 -> (B, A, L, D)."""
    lines = [x.reshape(-1, *x.shape[2:]) for x in (queries, keys, values)]
    return _over_lines(_attend, lines, bias, 1, interpret)[0].reshape(queries.shape)


def _attend_lines_forward(queries, keys, values, bias, interpret):
    return attend_lines(queries, keys, values, bias, interpret), (queries, keys, values, bias)


def _attend_lines_backward(interpret, saved, gradient):
    *inputs, bias = saved
    lines = [x.reshape(-1, *x.shape[2:]) for x in (*inputs, gradient)]
    *gradients, of_bias = _over_lines(_differentiate, lines, bias, 3, interpret, of_bias=True)
    return *(x.reshape(gradient.shape) for x in gradients), of_bias


attend_lines.defvjp(_attend_lines_forward, _attend_lines_backward)


def _over_lines(function, lines, bias, num_results, interpret, *, of_bias=False) -> list[jax.Array]:
    """A function of some lines, references to (G, L, D) each, for all of them.

    Args:
        function: takes the lines, the bias, as many results shaped as the lines and, if `of_bias`, one shaped as the
            bias, which stays from step to step; all as references.
        lines: (M, L, D) each.
        bias: (N, L, L).
        num_results: results shaped as the lines.
        interpret: see above.
        of_bias: see `function`.
    """
    number, length, _ = shape = lines[0].shape
    group = lines_a_step(number, length)
    pairs = number * length**2
    # Two products of all pairs; their gradients are two each, and the first is computed again.
    multiply_adds = pairs * shape[2] * (5 if of_bias else 2)
    per_step = pl.BlockSpec((group, *shape[1:]), lambda i: (i, 0, 0))
    always = pl.BlockSpec(bias.shape, lambda i: (0, 0, 0))
    return pl.pallas_call(
        function,
        grid=(number // group,),
        in_specs=[per_step] * len(lines) + [always],
        out_specs=[per_step] * num_results + [always] * of_bias,
        out_shape=[jax.ShapeDtypeStruct(shape, lines[0].dtype)] * num_results
        + [jax.ShapeDtypeStruct(bias.shape, jnp.float32)] * of_bias,
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=48 * 2**20),
        cost_estimate=cost(
            multiply_adds, (len(lines) + num_results) * lines[0].size * lines[0].dtype.itemsize, pairs * bias.shape[0]
        ),
        interpret=interpret,
        name=function.__name__.strip("_") + "_lines",
    )(*lines, bias)


def zero_at_first(sums: Any, *axes: int) -> None:
    """Sets references, which stay from step to step, to zero in a kernel's first step along some axes of its grid."""

    @pl.when(functools.reduce(operator.and_, [pl.program_id(axis) == 0 for axis in axes]))
    def _():
        for ref in jax.tree.leaves(sums):
            ref[...] = jnp.zeros_like(ref)


def lines_a_step(number: int, length: int) -> int:
    """Returns how many of so many lines, each so long, a kernel takes at a time."""
    return next(size for size in range(max(1, POSITIONS // length), 0, -1) if number % size == 0)


def _attend(queries, keys, values, bias, out):
    def line(i, _):
        for n, part in heads(bias.shape[0], queries.shape[2]):
            weights, total = softmax_weights(queries[i, :, part], keys[i, :, part], bias[n])
            attended = product(weights, values[i, :, part], values.dtype) / total
            out[i, :, part] = attended.astype(out.dtype)

    jax.lax.fori_loop(0, queries.shape[0], line, None)


def _differentiate(queries, keys, values, gradient, bias, of_queries, of_keys, of_values, of_bias):
    dtype = queries.dtype
    zero_at_first(of_bias, 0)

    def line(i, _):
        for n, part in heads(bias.shape[0], queries.shape[2]):
            q, k, v, g = (x[i, :, part] for x in (queries, keys, values, gradient))
            weights, total = softmax_weights(q, k, bias[n])
            of_logits, *found = attention_gradient(q, k, v, weights / total, g)
            of_bias[n] += of_logits
            for ref, value in zip((of_queries, of_keys, of_values), found, strict=True):
                ref[i, :, part] = value.astype(dtype)

    jax.lax.fori_loop(0, queries.shape[0], line, None)


def attention_gradient(
    queries: jax.Array, keys: jax.Array, values: jax.Array, weights: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Computes one head's gradients of logits (L, L), and of queries, keys and values (L, K); all float32.

    Args:
        queries: (L, K), and keys and values.
        keys: see there.
        values: see there.
        weights: (L, L) float32, of the softmax.
        gradient: (L, K), of what was attended.
    """
    dtype = values.dtype
    of_weights = product(gradient, values, dtype, (1, 1))
    of_logits = weights * (of_weights - (weights * of_weights).sum(axis=-1, keepdims=True))
    return (
        of_logits,
        product(of_logits, keys, dtype),
        product(of_logits, queries, dtype, (0, 0)),
        product(weights, gradient, dtype, (0, 0)),
    )


def heads(number: int, features: int) -> list[tuple[int, slice]]:
    """Each head's number and its features."""
    width = features // number
    return [(n, slice(n * width, (n + 1) * width)) for n in range(number)]


def softmax_weights(queries: jax.Array, keys: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes one head's weights of a line (L, L), not yet divided by their sums (L, 1)."""
    logits = product(queries, keys, keys.dtype, (1, 1)) + bias
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights, weights.sum(axis=-1, keepdims=True)


class OnlineSoftmax(NamedTuple):
    """An average by softmax weights, as far as it is known: (B, D) float32 each, a head's beside each of its features.

    Attention of one position a line, the decoders' way. Keys and values are (L, B, D), the attended axis first: softmax
    over it goes element by element, and what is left, sums over the K features of a head, is a product with ones, which
    the matrix units do.

    Attributes:
        largest: logit so far.
        total: of exp(logit - largest).
        attended: values weighted so.
    """

    largest: jax.Array
    total: jax.Array
    attended: jax.Array

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> "OnlineSoftmax":
        """Returns the state before any position."""
        zeros = jnp.zeros(shape, jnp.float32)
        return cls(jnp.full(shape, -jnp.inf, jnp.float32), zeros, zeros)

    def over(self, queries: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array) -> "OnlineSoftmax":
        """Adds M positions: queries (B, D), keys and values (M, B, D), bias (M, N) float32."""
        length, batch, features = keys.shape
        heads = bias.shape[1]
        width = features // heads
        bias = [jnp.broadcast_to(bias[:, n : n + 1], (length, width)) for n in range(heads)]
        products = (queries.astype(jnp.float32) * keys.astype(jnp.float32)).reshape(length * batch, features)
        logits = _sums_over_heads(products, width, keys.dtype).reshape(keys.shape)
        logits = logits + jnp.concatenate(bias, axis=1)[:, None]
        largest = jnp.maximum(self.largest, logits.max(axis=0))
        kept, weights = jnp.exp(self.largest - largest), jnp.exp(logits - largest)
        attended = (weights * values.astype(jnp.float32)).sum(axis=0)
        return OnlineSoftmax(largest, self.total * kept + weights.sum(axis=0), self.attended * kept + attended)

    def result(self) -> jax.Array:
        """The average, (B, D)."""
        return self.attended / self.total


def _sums_over_heads(x: jax.Array, width: int, dtype: jnp.dtype) -> jax.Array:
    """Sums over the K features of each head, beside each of them: (B, D) -> (B, D) float32."""
    # As many features at once as whole heads and whole vectors take.
    size = width if width % 128 == 0 else x.shape[1]
    head, of = (jax.lax.broadcasted_iota(jnp.int32, (size, size), axis) // width for axis in (0, 1))
    ones = (head == of).astype(dtype)
    return jnp.concatenate([product(x[:, i : i + size], ones, dtype) for i in range(0, x.shape[1], size)], axis=1)


def whole_tiles(batch: int) -> int:
    """The smallest number of lines or images, not less than `batch`, that the decoders' kernels take."""
    return -(-batch // _LEAST) * _LEAST


def tiles(batch: int) -> list[int]:
    """Returns how many lines or images a step of the decoders' kernels may take, the best first."""
    return [size for size in (_TILE, _LEAST) if batch % size == 0]


def chunk(length: int) -> int:
    """Positions at once in the decoders' attention."""
    return next(size for size in range(_CHUNK, 0, -1) if length % size == 0)


def pad(x: jax.Array, size: int, axis: int) -> jax.Array:
    """Zeros after the last of an axis, up to a size."""
    return jnp.pad(x, [(0, size - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])


@flax.struct.dataclass
class LinesCache:
    """A `coltran_jax.nn.attention.KeyValueCache` that takes one position at a time.

    Attributes:
        keys, values: (L, M, D), M lines of all images and zeros up to whole tiles.
        interpret: see above.
    """

    keys: jax.Array
    values: jax.Array
    interpret: bool = flax.struct.field(pytree_node=False)

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], dtype: jnp.dtype, interpret: bool) -> "LinesCache":
        """Returns a cache of zeros for (B, A, N, L, K)."""
        batch, others, heads, length, width = shape
        zeros = jnp.zeros((length, whole_tiles(batch * others), heads * width), dtype)
        return cls(zeros, zeros, interpret)

    def write(self, index: jax.Array, keys: jax.Array, values: jax.Array) -> "LinesCache":
        """Puts keys and values (B, A, N, 1, K) at a position."""

        def put(all_: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_index_in_dim(all_, self._lines(new), index, axis=0)

        return LinesCache(put(self.keys, keys), put(self.values, values), self.interpret)

    def attend(self, queries: jax.Array, bias: jax.Array, index: jax.Array) -> jax.Array:
        """Queries (B, A, N, 1, K) at `index`, bias (N, 1, L) with its mask -> (B, A, N, 1, K)."""
        length, lines, features = self.keys.shape
        size, positions = tiles(lines)[0], chunk(length)

        def in_chunk(t, c, last):
            # What comes after the last position is not fetched.
            return jnp.minimum(c, last[0] // positions), t, 0

        per_tile = pl.BlockSpec((size, features), lambda t, c, last: (t, 0))
        per_chunk = pl.BlockSpec((positions, size, features), in_chunk)
        attended = pl.pallas_call(
            functools.partial(_attend_so_far, positions),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(lines // size, length // positions),
                in_specs=[
                    per_tile,
                    per_chunk,
                    per_chunk,
                    pl.BlockSpec((positions, bias.shape[0]), lambda t, c, last: (c, 0)),
                ],
                out_specs=per_tile,
                scratch_shapes=[pltpu.VMEM((size, features), jnp.float32)] * 3,
            ),
            out_shape=jax.ShapeDtypeStruct((lines, features), queries.dtype),
            # On average half the positions are known.
            cost_estimate=cost(self.keys.size, self.keys.size * self.keys.dtype.itemsize, self.keys.size / 2),
            interpret=self.interpret,
            name="attend_so_far",
        )(jnp.reshape(index, (1,)).astype(jnp.int32), self._lines(queries), self.keys, self.values, bias[:, 0].T)
        batch, others, *rest = queries.shape
        return attended[: batch * others].reshape(batch, others, *rest)

    def reordered(self, images: jax.Array, others: int, filled: jax.Array) -> "LinesCache":
        """Returns the cache whose image b is image `images[b]` (B,) of this one; see `KeyValueCache.reordered`."""
        lines = (images[:, None] * others + jnp.arange(others)).ravel()
        lines = jnp.concatenate([lines, jnp.arange(lines.size, self.keys.shape[1])])
        parts = (replace_filled(x, lambda x: x[:, lines], filled, 0) for x in (self.keys, self.values))
        return LinesCache(*parts, self.interpret)

    def _lines(self, x: jax.Array) -> jax.Array:
        """(B, A, N, 1, K) -> (M, D)."""
        _, lines, features = self.keys.shape
        return pad(x.reshape(-1, features), lines, axis=0)


def replace_filled(
    cache: jax.Array, function: Callable[[jax.Array], jax.Array], filled: jax.Array, axis: int
) -> jax.Array:
    """Applies a function to the parts of a cache that have been filled, and leaves the zeros behind them.

    Args:
        cache: any array with an axis of positions.
        function: of some positions of it, to an array of the same shape.
        filled: how many positions have been decoded, ().
        axis: of the positions.
    """
    positions = chunk(cache.shape[axis])

    def on_part(number, cache):
        part = jax.lax.dynamic_slice_in_dim(cache, number * positions, positions, axis)
        return jax.lax.dynamic_update_slice_in_dim(cache, function(part), number * positions, axis)

    return jax.lax.fori_loop(0, (filled + positions - 1) // positions, on_part, cache)


def _attend_so_far(positions: int, last, queries, keys, values, bias, out, *state):
    """Some positions of a tile of lines."""
    number = pl.program_id(1)

    def load() -> OnlineSoftmax:
        return OnlineSoftmax(*(ref[...] for ref in state))

    def store(softmax: OnlineSoftmax) -> None:
        for ref, value in zip(state, softmax, strict=True):
            ref[...] = value

    @pl.when(number == 0)
    def _():
        store(OnlineSoftmax.empty(queries.shape))

    @pl.when(number <= last[0] // positions)
    def _():
        store(load().over(queries[...], keys[...], values[...], bias[...]))

    @pl.when(number == pl.num_programs(1) - 1)
    def _():
        out[...] = load().result().astype(out.dtype)
