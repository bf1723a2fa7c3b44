"""Products with weights, and vectors that all positions share, each with a gradient written out.

The gradients are jax's own but for the order in which they are computed, which decides how fast a CPU is.
"""

import functools

import jax
import jax.numpy as jnp


def matmul_precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Float32 products are float32 products on every device; in other types the device chooses."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


@jax.custom_vjp
def project(x: jax.Array, kernels: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """A product with each kernel, in the type of all: (..., C), (C, ...) each -> (..., ...) each."""
    return _products(x, kernels)


def _products(x: jax.Array, kernels: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(jnp.tensordot(x, kernel, axes=1, precision=matmul_precision(x.dtype)) for kernel in kernels)


def _project_forward(x, kernels):
    # Not by `project` itself, in which the policies of `jax.checkpoint` would not see products.
    return _products(x, kernels), (x, kernels)


def _project_backward(saved, gradients):
    x, kernels = saved
    tensordot = functools.partial(jnp.tensordot, precision=matmul_precision(x.dtype))

    def of_kernels(x: jax.Array, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        # Not (gradient^T x)^T, as jax would: a CPU transposes one of the two in memory, and x is the same for all
        # kernels.
        positions = tuple(range(x.ndim - 1))
        return tuple(tensordot(x, gradient, axes=(positions, positions)) for gradient in gradients)

    def of_kernels_on_cpu(x: jax.Array, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        # XLA would compute x anew while transposing it, which takes ten times as long as transposing what is there.
        return of_kernels(jax.lax.optimization_barrier(x), gradients)

    of_x = []
    for gradient, kernel in zip(gradients, kernels, strict=True):
        features = tuple(range(1 - kernel.ndim, 0))
        of_x.append(tensordot(gradient, kernel, axes=(features, features)))
    return sum(of_x[1:], of_x[0]), jax.lax.platform_dependent(x, gradients, cpu=of_kernels_on_cpu, default=of_kernels)


project.defvjp(_project_forward, _project_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def broadcast(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`jnp.broadcast_to` of x (..., D) over positions, to a shape that ends in D."""
    return jnp.broadcast_to(x, shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def sum_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The sum of x (..., D) over positions, the other way round from `broadcast`: to a shape that ends in D."""
    aligned = (1,) * (x.ndim - len(shape)) + shape
    summed = tuple(i for i, (few, many) in enumerate(zip(aligned, x.shape, strict=True)) if few != many)
    kept = tuple(i for i in range(x.ndim - 1) if i not in summed)

    def by_product(x: jax.Array) -> jax.Array:
        # On a CPU, XLA's sums over positions take twenty times as long as a product with ones.
        dimensions = ((summed, summed), (kept, kept))
        ones = jnp.ones(x.shape[:-1], x.dtype)
        return jax.lax.dot_general(ones, x, dimensions, precision=matmul_precision(x.dtype))

    return jax.lax.platform_dependent(x, cpu=by_product, default=lambda x: x.sum(summed)).reshape(shape)


broadcast.defvjp(lambda x, shape: (broadcast(x, shape), x.shape), lambda shape, own, gradient: (sum_to(gradient, own),))
sum_to.defvjp(lambda x, shape: (sum_to(x, shape), x.shape), lambda shape, own, gradient: (broadcast(gradient, own),))
