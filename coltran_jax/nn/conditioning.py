"""Conditioning: scale-and-shift, layer norm and MLP, plain and conditional on a context.

Section 4.1 of the paper.

Conditioning is two phases. `condition(context)` turns a context into `Affine` pairs, for a whole image or row at
once; applying them to activations comes later, for an image, a row or a pixel alike. A layer that is not conditional
returns None from the first phase and takes None in the second.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from coltran_jax.nn import initializers
from coltran_jax.nn.linear import broadcast, project, sum_to

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}


@flax.struct.dataclass
class Affine:
    """scale * x + shift; either may be absent. Shapes broadcast against x."""

    scale: jax.Array | None
    shift: jax.Array | None

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.scale is not None:
            x = x * self.scale.astype(x.dtype)
        if self.shift is not None:
            x = x + self.shift.astype(x.dtype)
        return x


def attention_affine(parts: Sequence[jax.Array], scale: bool, shift: bool, activation: str) -> Affine:
    """Scale and shift of queries, keys or values, from a context's projections to those of the two that there are."""
    if scale:
        parts = [ACTIVATIONS[activation](part) for part in parts]
    return Affine(parts[0] if scale else None, parts[-1] if shift else None)


def mlp_affine(projected: jax.Array, conditional: str, activation: str) -> Affine:
    """Scale and shift of an MLP's result, from a context's projection; see `Mlp`."""
    if conditional == "shift":
        return Affine(None, projected)
    projected = ACTIVATIONS[activation](projected)
    if conditional == "scale":
        return Affine(projected, None)
    # Shift first, the other way round from attention: so it is in the release's checkpoints.
    shift, scale = jnp.split(projected, 2, axis=-1)
    return Affine(scale, shift)


class Dense(nn.Module):
    """A linear layer over the last axis."""

    features: int
    axes: tuple[str | None, str | None]
    use_bias: bool = True
    kernel_init: str = "glorot_uniform"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*shape C"]) -> Float[Array, "*shape D"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", initializers.kernel(self.axes, kind=self.kernel_init), shape)
        (y,) = project(x.astype(self.dtype), (kernel.astype(self.dtype),))
        if self.use_bias:
            bias = self.param("bias", initializers.zeros(self.axes[1:]), (self.features,))
            y = y + broadcast(bias.astype(self.dtype), y.shape)
        return y


@jax.custom_vjp
def normalized(x: Float[Array, "*shape D"]) -> Float32[Array, "*shape D"]:
    """Returns x with mean zero and variance one over the last axis, with epsilon 1e-3."""
    return _normalized(x)[0]


def _normalized(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns normalized x, its mean, and the reciprocal of its deviation."""
    x = x.astype(jnp.float32)
    mean = x.mean(axis=-1, keepdims=True)
    centered = x - mean
    scale = jax.lax.rsqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + 1e-3)
    return centered * scale, mean, scale


def _normalized_forward(x):
    y, mean, scale = _normalized(x)
    return y, (x, mean, scale)


def _gradient_in_one_pass(x: jax.Array, mean: jax.Array, scale: jax.Array, gradient: jax.Array) -> jax.Array:
    # The two means do not depend on each other. jax's own gradient takes a pass for each, and keeps what is centered in
    # float32.
    y = (x.astype(jnp.float32) - mean) * scale
    along = (gradient * y).mean(axis=-1, keepdims=True)
    return (scale * (gradient - gradient.mean(axis=-1, keepdims=True) - y * along)).astype(x.dtype)


def _gradient_by_jax(x: jax.Array, mean: jax.Array, scale: jax.Array, gradient: jax.Array) -> jax.Array:
    (of_x,) = jax.vjp(lambda x: _normalized(x)[0], x)[1](gradient)
    return of_x


def _normalized_backward(saved, gradient):
    # On a CPU the one pass for both takes longer than the two.
    of_x = jax.lax.platform_dependent(*saved, gradient, cpu=_gradient_by_jax, default=_gradient_in_one_pass)
    return (of_x,)


normalized.defvjp(_normalized_forward, _normalized_backward)


@jax.custom_vjp
def normalized_in_kernels(x: Float[Array, "*shape D"]) -> Float32[Array, "*shape D"]:
    """Computes `normalized` where the platform is not asked for: its gradient takes one pass."""
    return _normalized(x)[0]


normalized_in_kernels.defvjp(_normalized_forward, lambda saved, gradient: (_gradient_in_one_pass(*saved, gradient),))


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, epsilon 1e-3, statistics in float32.

    Unconditional: a learned scale and bias. Conditional: norm * act(g) + act(b), where g and b come from the context,
    averaged over the image.

    Attributes:
        features: D.
        resolution: (H, W) of the context; None for the unconditional norm.
        spatial_average: "learnable", the mean of u * C with a learned map u, or "mean".
        sequence: "sc", averaged first and projected after, or "cs", the other way round.
        activation: applied to g and to b.
        kernel_init: of the projection.
        dtype: of the result.
    """

    features: int
    resolution: tuple[int, int] | None = None
    spatial_average: str = "learnable"
    sequence: str = "sc"
    activation: str = "identity"
    kernel_init: str = "glorot_uniform"
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        if self.resolution is None:
            self.scale = self.param("scale", initializers.ones((None,)), (self.features,))
            self.bias = self.param("bias", initializers.zeros((None,)), (self.features,))
            return
        if self.spatial_average == "learnable":
            self.spatial_map = self.param("spatial_average", initializers.ones((None, None)), self.resolution)
        self.projection = Dense(2 * self.features, ("embed", None), kernel_init=self.kernel_init)

    def condition(self, context: Float[Array, "B H W C"], *, per_row: bool = False) -> Affine | None:
        """Scale and shift from the context of a whole image.

        Args:
            context: features of each pixel.
            per_row: average each row alone, with u averaged over its rows. The release samples so.

        Returns:
            Pairs of (B, 1, 1, D), or (B, H, 1, D) if `per_row`; in float32. None where the norm is unconditional.
        """
        if self.resolution is None:
            return None
        context = context.astype(jnp.float32)
        if self.sequence == "cs":
            context = self.projection(context)
        pooled = self._average(context, per_row)
        if self.sequence == "sc":
            pooled = self.projection(pooled)
        scale, shift = jnp.split(ACTIVATIONS[self.activation](pooled), 2, axis=-1)
        return Affine(scale, shift)

    def _average(self, context: jax.Array, per_row: bool) -> jax.Array:
        if self.spatial_average == "learnable":
            weights = self.spatial_map.mean(axis=0, keepdims=True) if per_row else self.spatial_map
            context = context * weights[:, :, None]
        batch, height, width, features = context.shape
        rows = height if per_row else 1
        return sum_to(context, (batch, rows, 1, features)) * (rows / (height * width))

    def __call__(self, x: Float[Array, "*shape D"], affine: Affine | None = None) -> Float[Array, "*shape D"]:
        """Normalizes, scales and shifts x."""
        affine = Affine(self.scale, self.bias) if self.resolution is None else affine
        affine = jax.tree.map(lambda part: broadcast(part, x.shape), affine)
        return affine(normalized(x)).astype(self.dtype)


class Mlp(nn.Module):
    """D -> F relu -> D with biases, its result optionally scaled and shifted by the context.

    Attributes:
        features: D.
        hidden_features: F.
        conditional: "affine", "shift", "scale", or "" for none.
        activation: applied to scale and shift, but not to the shift of "shift".
        dtype: of matrix products and of the result.
    """

    features: int
    hidden_features: int
    conditional: str = ""
    activation: str = "identity"
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.hidden = Dense(self.hidden_features, ("embed", "mlp"), dtype=self.dtype)
        self.output = Dense(self.features, ("mlp", "embed"), dtype=self.dtype)
        if self.conditional:
            parts = 2 if self.conditional == "affine" else 1
            self.context = Dense(parts * self.features, ("embed", None), dtype=self.dtype)

    def condition(self, context: Float[Array, "*shape C"]) -> Affine | None:
        """Projects the context to scale and shift, (..., D) each; None where the layer is unconditional."""
        if not self.conditional:
            return None
        return mlp_affine(self.context(context), self.conditional, self.activation)

    def __call__(self, x: Float[Array, "*shape D"], affine: Affine | None = None) -> Float[Array, "*shape D"]:
        """Computes each position alone."""
        y = self.output(jax.nn.relu(self.hidden(x)))
        return y if affine is None else affine(y)
