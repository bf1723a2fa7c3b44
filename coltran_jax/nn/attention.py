"""Axial self-attention over one axis of an image, plain and conditional, whole or one position at a time.

Sections 3 and 4.1 of the paper. Internally the attended axis comes last but one and the other axis is a batch axis:
queries, keys and values are (B, A, N, L, K), A the length of the other axis and L of the attended one.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from coltran_jax.nn import attention_kernels, initializers
from coltran_jax.nn.attention_kernels import LinesCache, replace_filled, scaled_queries
from coltran_jax.nn.compute import DEFAULT, Compute
from coltran_jax.nn.conditioning import Affine, attention_affine
from coltran_jax.nn.linear import matmul_precision, project

_MASKED = -1e6


@flax.struct.dataclass
class KeyValueCache:
    """Keys and values of the positions decoded so far: (B, A, N, L, K) each, zeros where not yet decoded."""

    keys: jax.Array
    values: jax.Array

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], dtype: jnp.dtype) -> "KeyValueCache":
        """Returns a cache of zeros."""
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def write(
        self, index: Int[Array, ""] | int, keys: Float[Array, "B A N Q K"], values: Float[Array, "B A N Q K"]
    ) -> "KeyValueCache":
        """Puts keys and values at Q positions of the attended axis from `index` on."""
        return KeyValueCache(
            jax.lax.dynamic_update_slice_in_dim(self.keys, keys, index, axis=3),
            jax.lax.dynamic_update_slice_in_dim(self.values, values, index, axis=3),
        )

    def attend(
        self, queries: Float[Array, "B A N Q K"], bias: Float[Array, "N Q L"], index: Int[Array, ""] | int
    ) -> Float[Array, "B A N Q K"]:
        """Attends by queries from `index` on; the bias has the mask in it."""
        del index
        return attend(queries, self.keys, self.values, bias)

    def reordered(self, images: Int[Array, " B"], others: int, filled: Int[Array, ""]) -> "KeyValueCache":
        """Returns the cache whose image b is image `images[b]` of this one.

        Args:
            images: numbers of images.
            others: A.
            filled: how many positions have been decoded; those behind them stay zeros.
        """
        del others
        return KeyValueCache(*(replace_filled(x, lambda x: x[images], filled, 3) for x in (self.keys, self.values)))


@jax.custom_vjp
def attend(
    queries: Float[Array, "B A N L K"],
    keys: Float[Array, "B A N M K"],
    values: Float[Array, "B A N M K"],
    bias: Float[Array, "N L M"],
) -> Float[Array, "B A N L K"]:
    """Computes softmax attention, its weights in float32."""
    return _attend(queries, keys, values, bias)[0]


def _attend(queries, keys, values, bias):
    """Returns attended values, and the weights in their type."""
    product = functools.partial(jnp.einsum, precision=matmul_precision(queries.dtype))
    logits = product("banlk,banmk->banlm", queries, keys, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits + bias, axis=-1).astype(values.dtype)
    return product("banlm,banmk->banlk", weights, values), weights


def _attend_forward(queries, keys, values, bias):
    attended, weights = _attend(queries, keys, values, bias)
    return attended, (queries, keys, values, weights, attended)


def _attend_backward(saved, gradient):
    queries, keys, values, weights, attended = saved
    product = functools.partial(jnp.einsum, precision=matmul_precision(queries.dtype))
    # The sum over keys of weights by their gradients, as one over features (Dao et al., 2022, "FlashAttention"): those
    # are kept anyway, and a line of 64 keys fills half of a TPU's lanes.
    total = (gradient.astype(jnp.float32) * attended).sum(axis=-1, keepdims=True)
    of_weights = product("banlk,banmk->banlm", gradient, values, preferred_element_type=jnp.float32)
    of_logits = weights * (of_weights - total)
    of_bias = of_logits.sum(axis=(0, 1))
    of_logits = of_logits.astype(queries.dtype)
    return (
        product("banlm,banmk->banlk", of_logits, keys),
        product("banlm,banlk->banmk", of_logits, queries),
        product("banlm,banlk->banmk", weights, gradient),
        of_bias,
    )


attend.defvjp(_attend_forward, _attend_backward)


def over_mesh(
    function: Callable[..., jax.Array], arguments: tuple[Any, ...], result: tuple
) -> Callable[..., jax.Array]:
    """A kernel over the devices of a mesh, where there is one: XLA cannot cut a kernel itself.

    Args:
        function: of arrays, or trees of them.
        arguments: logical axes of its arguments, as a tuple for an array or for all arrays of a tree.
        result: logical axes of its result.
    """
    if not nn.get_logical_axis_rules():
        return function
    specs = tuple(
        jax.tree.map(nn.logical_to_mesh_axes, axes, is_leaf=lambda x: isinstance(x, tuple)) for axes in arguments
    )
    return jax.shard_map(function, in_specs=specs, out_specs=nn.logical_to_mesh_axes(result), check_vma=False)


class AxialAttention(nn.Module):
    """Self-attention along the rows or the columns of (B, H, W, D).

    Attributes:
        features: D.
        num_heads: N.
        length: L, the length of the attended axis.
        axis: "row", along a row (over W), or "column", along a column (over H).
        causal: a position sees itself and those before it only.
        conditional: which of "q", "k" and "v" are scaled and shifted by the context.
        context_features: C, the width of the context, where any is.
        scale, shift: which of the two the context gives.
        activation: applied to scale and shift, but not to the shift of the shift-only form.
        condition_init: initial values of the context's projection.
        compute: how it computes.
    """

    features: int
    num_heads: int
    length: int
    axis: str
    causal: bool = False
    conditional: str = ""
    context_features: int = 0
    scale: bool = True
    shift: bool = True
    activation: str = "identity"
    condition_init: str = "glorot_uniform"
    compute: Compute = DEFAULT

    def setup(self):
        heads, width = self.num_heads, self.features // self.num_heads
        # The three projections in one array are one product; each has the initial values it would have alone.
        self.qkv = self.param(
            "qkv",
            initializers.kernel(("embed", None, "heads", None), shape=(self.features, heads, width)),
            (self.features, 3, heads, width),
        )
        self.output = self.param("output", initializers.kernel(("heads", None, "embed")), (heads, width, self.features))
        self.relative_bias = self.param("relative_bias", initializers.zeros(("heads", None)), (heads, 2 * self.length))
        if self.conditional:
            parts = width * (self.scale + self.shift)
            self.context = self.param(
                "context",
                initializers.kernel(
                    ("embed", None, "heads", None),
                    kind=self.condition_init,
                    shape=(self.context_features, heads, parts),
                ),
                (self.context_features, len(self.conditional), heads, parts),
            )

    def condition(self, context: Float[Array, "B H W C"]) -> dict[str, Affine]:
        """Returns scale and shift, (B, H, W, N, K) each, of the conditional ones of q, k and v."""
        if not self.conditional:
            return {}
        products = self._products(context, self.context, self.scale + self.shift)
        return {
            letter: attention_affine(parts, self.scale, self.shift, self.activation)
            for letter, parts in zip(self.conditional, products, strict=True)
        }

    def __call__(
        self, x: Float[Array, "B H W D"], condition: dict[str, Affine] | None = None
    ) -> Float[Array, "B H W D"]:
        """Computes the whole image at once."""
        projected = self._project(x, condition)
        if not self.compute.uses_pallas:
            return self._output(attend(*map(self._by_head, projected), self.bias()))
        # (B, H, W, N, K) <-> (B, A, L, D).
        lines = [x.reshape(*x.shape[:3], self.features) for x in projected]
        attend_lines = functools.partial(attention_kernels.attend_lines, interpret=self.compute.interpret)
        line = ("batch", "rows" if self.axis == "row" else "columns", None, "heads")
        attend_lines = over_mesh(attend_lines, (line, line, line, ("heads", None, None)), line)
        if self.axis == "row":
            return self._project_output(attend_lines(*lines, self.bias()))
        columns = attend_lines(*(x.swapaxes(1, 2) for x in lines), self.bias())
        return self._project_output(columns.swapaxes(1, 2))

    def bias(self) -> Float[Array, "N L L"]:
        """Returns relative bias and mask of all pairs of queries and keys."""
        positions = np.arange(self.length)
        offsets = positions[None, :] - positions[:, None]
        bias = self.relative_bias[:, offsets + self.length - 1]
        return jnp.where(offsets > 0, bias + _MASKED, bias) if self.causal else bias

    def empty_cache(self, batch: int, others: int) -> KeyValueCache | LinesCache:
        """A cache for `step`; `others` is A, the length of the axis that is not attended."""
        shape = (batch, others, self.num_heads, self.length, self.features // self.num_heads)
        if not self.compute.uses_pallas or self.axis == "row":
            # Rows go on by several positions at once, too.
            return KeyValueCache.empty(shape, self.compute.dtype)
        return LinesCache.empty(shape, self.compute.dtype, self.compute.interpret)

    def step(
        self,
        x: Float[Array, "B H W D"],
        cache: KeyValueCache | LinesCache,
        index: Int[Array, ""] | int,
        condition: dict[str, Affine] | None = None,
    ) -> tuple[Float[Array, "B H W D"], KeyValueCache | LinesCache]:
        """Computes some positions of the attended axis that follow each other, given the cache of those before them.

        Args:
            x: with Q positions of the attended axis.
            cache: of the positions before.
            index: the first of these positions.
            condition: as `condition` gives for these positions.

        Returns:
            The result, shaped as x, and the cache with these positions in it.
        """
        queries, keys, values = map(self._by_head, self._project(x, condition))
        cache = cache.write(index, keys, values)
        return self._output(cache.attend(queries, self._bias_from(index, queries.shape[3]), index)), cache

    def _bias_from(self, index: jax.Array, size: int) -> jax.Array:
        """Relative bias and mask of `size` queries from `index` on: (N, Q, L)."""
        # What any of the queries takes, of which the last takes the first part: query i and key j use (j - i) + L - 1.
        start, length = self.length - size - index, self.length + size - 1
        bias = jax.lax.dynamic_slice_in_dim(self.relative_bias, start, length, axis=1)
        queries, keys = np.arange(size)[:, None], np.arange(self.length)
        bias = bias[:, keys + size - 1 - queries]
        return jnp.where(keys > index + queries, bias + _MASKED, bias)

    def _project(self, x: jax.Array, condition: dict[str, Affine] | None) -> list[jax.Array]:
        """Queries, keys and values: (B, H, W, D) -> (B, H, W, N, K) each."""
        parts = {letter: part for letter, (part,) in zip("qkv", self._products(x, self.qkv), strict=True)}
        for letter, affine in (condition or {}).items():
            parts[letter] = affine(parts[letter])
        parts["q"] = scaled_queries(parts["q"], self.features // self.num_heads)
        return list(parts.values())

    def _by_head(self, x: jax.Array) -> jax.Array:
        """(B, H, W, N, K) -> (B, A, N, L, K)."""
        return jnp.einsum("bhwnk->bhnwk" if self.axis == "row" else "bhwnk->bwnhk", x)

    def _output(self, attended: jax.Array) -> jax.Array:
        """(B, A, N, L, K) -> (B, H, W, D)."""
        # Heads last, beside their width, so that the product with the kernel as it lies in memory is a plain one.
        attended = jnp.einsum("bhnwk->bhwnk" if self.axis == "row" else "bwnhk->bhwnk", attended)
        return self._project_output(attended.reshape(*attended.shape[:3], self.features))

    def _project_output(self, attended: jax.Array) -> jax.Array:
        """(B, H, W, D) -> (B, H, W, D)."""
        return self._project_by(attended, self.output.reshape(self.features, self.features))[0]

    def _products(self, x: jax.Array, kernels: jax.Array, halves: int = 1) -> list[list[jax.Array]]:
        """Products with P kernels side by side, each cut into parts along K.

        Args:
            x: (B, H, W, C).
            kernels: (C, P, N, K).
            halves: number of parts, 1 or 2.

        Returns:
            P lists of `halves` arrays (B, H, W, N, K / halves).
        """

        def split(x: jax.Array, axis: int) -> list[list[jax.Array]]:
            # By splits, whose gradient is one concatenation; that of indexing is a sum of padded arrays.
            each = (part.squeeze(axis) for part in jnp.split(x, kernels.shape[1], axis))
            return [jnp.split(part, halves, axis=-1) for part in each]

        if x.shape[1] > 1 and x.shape[2] > 1:
            # Images: each product puts its result where attention wants it; taking them apart afterwards is a copy.
            parts = iter(self._project_by(x, *itertools.chain(*split(kernels, axis=1))))
            return [list(itertools.islice(parts, halves)) for _ in range(kernels.shape[1])]
        # Rows and pixels: one product is one kernel to start, and the weights are read as they lie in memory.
        return split(self._project_by(x, kernels)[0], axis=3)

    def _project_by(self, x: jax.Array, *kernels: jax.Array) -> tuple[jax.Array, ...]:
        dtype = self.compute.dtype
        return project(x.astype(dtype), tuple(kernel.astype(dtype) for kernel in kernels))
