"""Decoders of a row: pixel by pixel, several pixels in parallel, or in one kernel. All give the same colours.

Given the noise, a row is a function: the only x that is f(x), f giving each pixel from those before it. The decoder
"fixed_point" finds it without going from pixel to pixel. It guesses the row with the parallel head and iterates over a
window of it: all pixels of the window at once, each from the guesses before it. All up to the first that changes are
right, and so is that one, since all before it were; the next window begins behind it. So it ends with the row that
"sequential" gives, sooner where guesses are good. The images of a batch share the window, which the slowest of them
holds back.

With the backend "pallas", for TPUs, "sequential" is one kernel a row; see `coltran_jax.sampling.row_kernel`.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from coltran_jax.nn.axial import NormCondition, SublayerCondition
from coltran_jax.nn.colorizer import Caches, Colorizer
from coltran_jax.sampling import row_kernel

# Methods of the colorizer with its parameters, by name; colours from logits, noise, what is known and the tilt.
Apply = Callable[..., Any]
Draw = Callable[..., jax.Array]


@flax.struct.dataclass
class Row:
    """State of a row that does not depend on its colours.

    Attributes:
        z: (B S, 1, W, D).
        base: (B S, 1, W, D), what is added to the embedded pixels to the left.
        conditions: of the inner decoder's blocks.
        norms: conditions of their norms, (B S, 1, 1, D) each.
        noise: (B S, W, 512).
        known: (B S, W) int32, colours that are known, -1 elsewhere.
        tilt: (B S, W, 512) float32, what guides add to the logits at temperature one; None for no guide.
    """

    z: jax.Array
    base: jax.Array
    conditions: tuple[SublayerCondition, ...]
    norms: tuple[NormCondition, ...]
    noise: jax.Array
    known: jax.Array
    tilt: jax.Array | None

    @property
    def of_draw(self) -> tuple[jax.Array | None, ...]:
        """Returns what decides a draw beside the logits, (B S, W, ...) each."""
        return self.noise, self.known, self.tilt


@flax.struct.dataclass
class _IterationCarry:
    """State that passes from one fixed-point iteration over a row to the next.

    Attributes:
        start: (B S,) int32, the first pixel that is not known to be right; W where all are.
        colors: (B S, W) int32, right before `start`, guesses from there on.
        logits: (B S, W, 512) float32, right before `start`.
        caches: keys and values, right before `start`, one a block of the inner decoder.
        num_iterations: (B S,) int32.
    """

    start: jax.Array
    colors: jax.Array
    logits: jax.Array
    caches: Caches
    num_iterations: jax.Array


@flax.struct.dataclass
class _PixelCarry:
    """State that passes from pixel to pixel within a row.

    Attributes:
        left: (B S, 1, 1, D) embedding of the pixel to the left; zeros in column 0.
        caches: keys and values of finished pixels, one a block of the inner decoder.
    """

    left: jax.Array
    caches: Caches


def sequential(apply: Apply, draw: Draw, row: Row) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pixel by pixel: colours (B S, W), their logits (B S, W, 512), iterations (B S,)."""
    batch, _, width, features = row.base.shape
    _, empty_caches = apply("empty_caches", batch)
    no_left = jnp.zeros((batch, 1, 1, features), row.base.dtype)

    def draw_pixel(carry: _PixelCarry, pixel):
        column, base, conditions, *of_draw = pixel
        logits, caches = apply("decode_pixels", carry.left + base, column, carry.caches, conditions, row.norms)
        logits = logits[:, 0, 0]
        color = draw(logits, *of_draw)
        left = apply("embed", color)[:, None, None]
        return _PixelCarry(left, caches), (color, logits)

    # For the scan each pixel is an image of one row and one column: (B S, 1, W, ...) -> (W, B S, 1, 1, ...).
    by_pixel = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0)[:, :, :, None], (row.base, row.conditions))
    pixels = (jnp.arange(width), *by_pixel, *jax.tree.map(lambda x: x.swapaxes(0, 1), row.of_draw))
    _, (colors, logits) = jax.lax.scan(draw_pixel, _PixelCarry(no_left, empty_caches), pixels)
    return colors.T, logits.swapaxes(0, 1), jnp.full(batch, width, jnp.int32)


def fixed_point(apply: Apply, draw: Draw, row: Row, *, window: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A window of Q pixels at once, again and again: as `sequential`."""
    batch, _, width, _ = row.base.shape

    def sweep(carry: _IterationCarry) -> _IterationCarry:
        # Where undecided pixels begin in the slowest image; elsewhere, and near the row's end, they may begin later.
        first = jnp.minimum(carry.start.min(), width - window)
        columns = first + jnp.arange(window)

        def cut(x: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, first, window, axis)

        def put(x: jax.Array, part: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(x, part, first, axis=1)

        base, conditions = jax.tree.map(lambda x: cut(x, 2), (row.base, row.conditions))
        left = apply("embed", cut(jnp.pad(carry.colors, ((0, 0), (1, 0))), 1))
        left = jnp.where(columns[:, None] > 0, left, 0)
        logits, caches = apply("decode_pixels", left[:, None] + base, first, carry.caches, conditions, row.norms)
        logits = logits[:, 0]

        before = cut(carry.colors, 1)
        undecided = columns >= carry.start[:, None]
        found = jnp.where(undecided, draw(logits, *jax.tree.map(lambda x: cut(x, 1), row.of_draw)), before)
        wrong = found != before
        num_right = jnp.where(wrong.any(axis=-1), jnp.argmax(wrong, axis=-1) + 1, window)
        return _IterationCarry(
            jnp.maximum(carry.start, first + num_right),
            put(carry.colors, found),
            put(carry.logits, logits),
            caches,
            carry.num_iterations + (carry.start < width),
        )

    guess = apply("guess", row.z)[:, 0]
    zeros = jnp.zeros(batch, jnp.int32)
    begin = _IterationCarry(zeros, draw(guess, *row.of_draw), guess, apply("empty_caches", batch)[1], zeros)
    end = jax.lax.while_loop(lambda carry: (carry.start < width).any(), sweep, begin)
    return end.colors, end.logits, end.num_iterations


def in_one_kernel(
    model: Colorizer,
    prepared: dict[str, Any],
    options: tuple[jax.Array | float | None, ...],
    apply: Apply,
    draw: Draw,
    row: Row,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Decodes a row as `sequential` does, in one Pallas kernel."""
    del apply, draw
    colors, logits = row_kernel.decode_row(model, prepared, row.base, row.conditions, row.norms, *row.of_draw, *options)
    return colors, logits, jnp.full(colors.shape[:1], colors.shape[1], jnp.int32)
