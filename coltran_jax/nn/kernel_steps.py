"""The steps of a block's Pallas kernel over the lines of images: what is fetched, and what stays in VMEM.

Columns are transposed into lines in VMEM, so that no image is transposed in the device's memory.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from coltran_jax.nn.attention_kernels import cost, lines_a_step, zero_at_first

# What a kernel may take of it, and XLA has the rest.
VMEM_BYTES = 64 * 2**20
# Positions of a row that a TPU keeps beside each other.
_TILE = 8


class Lines(NamedTuple):
    """The lines of an image, and how a kernel takes them.

    Attributes:
        number: A.
        length: L.
        at_once: lines that the kernel computes with at a time.
        fetched: lines of a step, a multiple of those. Of columns whole tiles of memory, or all.
    """

    number: int
    length: int
    at_once: int
    fetched: int

    @classmethod
    def of(cls, shape: tuple[int, ...], axis: str) -> "Lines":
        """Returns the rows or the columns of images (B, H, W, D)."""
        number, length = shape[1:3] if axis == "row" else shape[2:0:-1]
        at_once = lines_a_step(number, length)
        if axis == "row":
            return cls(number, length, at_once, at_once)
        tiles = (size for size in range(at_once, number, at_once) if number % size == 0 and size % _TILE == 0)
        return cls(number, length, at_once, next(tiles, number))


def _num_cores(interpret: bool) -> int:
    return 1 if interpret else pltpu.get_tpu_info().num_cores


class Steps:
    """The steps of a kernel, each some lines of one image.

    Args:
        shape: of the images, (B, H, W, D).
        axis: "row" or "column", of the lines.
        norms: scales and shifts of each image, a tree of (B, 1, D).
        stay: bias and weights, which stay in VMEM from step to step.
        interpret: run step by step on any device.
    """

    def __init__(self, shape: tuple[int, ...], axis: str, norms: Any, stay: tuple[jax.Array, Any], interpret: bool):
        self._lines, self._axis = Lines.of(shape, axis), axis
        self._norms, self._stay, self._interpret = norms, stay, interpret
        self._once = None if interpret else pl.Buffered(1)
        # Each of a TPU's cores takes some images.
        self._cores = math.gcd(shape[0], _num_cores(interpret))
        self._images = shape[0] // self._cores

    @property
    def positions(self) -> int:
        """Positions that a kernel computes with at a time, P."""
        return self._lines.at_once * self._lines.length

    def run(self, kernel: Any, images: list[jax.Array | None], out: list[Any], room: Any, *, sums: bool = False) -> Any:
        """Runs a kernel.

        Args:
            kernel: takes references to lines of the images, norms, bias, weights, room, lines of the results and, where
                there are sums, those of norms, bias and weights.
            images: (B, H, W, D) each.
            out: shapes and types of the images that result.
            room: shapes and types of what a kernel keeps in VMEM while it computes, a tree.
            sums: whether what is given beside images has gradients.

        Returns:
            The images that result; with sums a tuple of these and of the sums of norms, bias and weights.
        """
        inputs, shapes, out_specs = (images, self._norms, *self._stay), (out,), (self._of_lines(out),)
        stay = jax.tree.map(self._stays, self._stay)
        norms = jax.tree.map(self._of_image, self._norms)
        if sums:
            of_stay = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self._cores, *x.shape), jnp.float32), self._stay)
            shapes = (out, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._norms), *of_stay)
            out_specs = (*out_specs, norms, *jax.tree.map(self._of_core, self._stay))
        if not self._interpret:
            # Not where XLA finds room for each block: equal kernels are compiled once.
            inputs = jax.tree.map(lambda x: pltpu.with_memory_space_constraint(x, pltpu.HBM), inputs)
            shapes = jax.tree.map(lambda x: pltpu.HBM(x.shape, x.dtype), shapes)
        columns = self._lines.at_once if self._axis == "column" else None
        results = pl.pallas_call(
            functools.partial(_take_step, kernel, columns),
            grid=(self._cores, self._images, self._lines.number // self._lines.fetched),
            in_specs=(self._of_lines(images), norms, *stay),
            out_specs=out_specs,
            out_shape=shapes,
            scratch_shapes=(
                jax.tree.map(lambda x: pltpu.VMEM(x.shape, x.dtype), room),
                *(() if columns is None else jax.tree.map(self._as_lines, (images, out))),
            ),
            compiler_params=pltpu.CompilerParams(
                vmem_limit_bytes=VMEM_BYTES, dimension_semantics=("parallel", "arbitrary", "arbitrary")
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
        positions = self._cores * self._images * self._lines.number * self._lines.length
        # All but biases, scales and shifts, (1, D).
        kernels = sum(x.size for x in jax.tree.leaves(weights) if x.shape[0] > 1)
        # With gradients all is computed again, and each product has two.
        multiply_adds = (3 if sums else 1) * positions * (kernels + 2 * self._lines.length * weights["output"].shape[0])
        return cost(
            multiply_adds, sum(x.size * x.dtype.itemsize for x in moved), positions * self._lines.length * bias.shape[0]
        )

    def _of_lines(self, images):
        def spec(x):
            if self._axis == "row":
                return pl.BlockSpec(
                    (None, self._lines.fetched, *x.shape[2:]), lambda c, b, a: (self._image(c, b), a, 0, 0)
                )
            block = (None, self._lines.length, self._lines.fetched, x.shape[3])
            return pl.BlockSpec(block, lambda c, b, a: (self._image(c, b), 0, a, 0))

        return jax.tree.map(spec, images)

    def _as_lines(self, x):
        return pltpu.VMEM((self._lines.fetched, self._lines.length, x.shape[3]), x.dtype)

    def _image(self, core, number):
        return core * self._images + number

    def _of_image(self, x):
        return pl.BlockSpec((None, *x.shape[1:]), lambda c, b, a: (self._image(c, b), 0, 0))

    def _stays(self, x):
        return pl.BlockSpec(x.shape, lambda c, b, a: (0,) * x.ndim, pipeline_mode=self._once)

    def _of_core(self, x):
        """A sum of a core's steps, shaped as x."""
        return pl.BlockSpec((None, *x.shape), lambda c, b, a: (c, *(0,) * x.ndim), pipeline_mode=self._once)


def _take_step(kernel, columns, images, norms, bias, weights, results, *rest):
    """Applies a kernel to the lines of a step.

    Args:
        kernel: see `Steps.run`.
        columns: how many it takes at a time; None for rows, which it takes all at once.
        images: references to rows (A, L, D), or to columns as the image has them (L, A, D).
        norms: see `Steps.run`.
        bias: see there.
        weights: see there.
        results: references to images that result.
        rest: sums, if there are any; room; and of columns room for images and results as lines (A, L, D).
    """
    *sums, room, as_lines = (*rest, None) if columns is None else (*rest[:-2], rest[-2:])
    if sums:
        of_norms, *of_stay = sums
        zero_at_first(of_norms, 2)
        zero_at_first(of_stay, 1, 2)
    if as_lines is None:
        kernel(images, norms, bias, weights, room, results, *sums)
        return
    lines, lines_of_results = as_lines
    _transpose(images, lines)

    def take(number, _):
        part = pl.ds(number * columns, columns)
        some, some_results = ([ref if ref is None else ref.at[part] for ref in refs] for refs in as_lines)
        kernel(some, norms, bias, weights, room, some_results, *sums)

    jax.lax.fori_loop(0, jax.tree.leaves(lines)[0].shape[0] // columns, take, None)
    _transpose(lines_of_results, results)


def _transpose(source: list[Any], target: list[Any]) -> None:
    for ref, transposed in zip(*map(jax.tree.leaves, (source, target)), strict=True):
        transposed[...] = ref[...].swapaxes(0, 1)
