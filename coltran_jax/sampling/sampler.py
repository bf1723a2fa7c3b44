"""Row-wise, semi-parallel sampling of coarse images.

One jitted function: a `lax.scan` over rows, within a row a `lax.scan` over pixels. Rows above never change and neither
do pixels to the left, so their keys and values stay in caches; what depends on the gray image or on finished rows
alone is computed for a whole row at once. An image costs about one teacher-forced forward pass.

A draw is argmax(logits / temperature + noise): given the noise, the image is a function, however its rows are decoded;
see `coltran_jax.sampling.row_decoders`.

The content of the image can guide the draws; see `coltran_jax.sampling.content`.

Colours of some pixels may be known beforehand. They are set, and each sample is then a particle filter of several
copies of the image; see `coltran_jax.sampling.particles`.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from coltran_jax.images.arrays import NUM_COARSE_COLORS
from coltran_jax.nn.axial import NormCondition
from coltran_jax.nn.colorizer import Caches, Colorizer
from coltran_jax.nn.parameters import Parameters, in_compute_dtype
from coltran_jax.sampling import particles, row_decoders, row_kernel
from coltran_jax.sampling.known import KnownCoarse
from coltran_jax.sampling.noise import Noise, log_totals, perturbed


@flax.struct.dataclass
class CoarseSamples:
    """The result of the sampler.

    Attributes:
        coarse: (B, S, H, W) int32 in 0..511.
        log_probability_bits: (B, S, H, W) float32, base-2 logarithm of the probability of each pixel's colour, given
            the pixels before it, at temperature one; under the network run as it was for sampling, as trained or as
            released.
        max_probability: (B, S, H, W) float32, of the most probable colour at temperature one.
        entropy_bits: (B, S, H, W) float32, of the pixel's distribution at temperature one.
        num_iterations: (B, S, H) int32, runs of the inner decoder that each row took; sequential, W.
        log_evidence_bits: (B, S) float32, base-2 logarithm of an estimate of the probability of the known colours, at
            the sampler's temperature; 0 without any.
        effective_particles: (B, S) float32, the smallest effective number of particles at the end of any row, 1 to P.
    """

    coarse: jax.Array
    log_probability_bits: jax.Array
    max_probability: jax.Array
    entropy_bits: jax.Array
    num_iterations: jax.Array
    log_evidence_bits: jax.Array
    effective_particles: jax.Array

    @property
    def log_likelihood_bits(self) -> jax.Array:
        """(B, S) float32, of the whole image."""
        return self.log_probability_bits.sum(axis=(2, 3))


@flax.struct.dataclass
class _Image:
    """State that is fixed while an image is sampled.

    Attributes:
        z: (B, H, W, D) of the gray encoder.
        outer_norms: conditions of the outer decoder's norms, (B S, 1, 1, D) each.
        inner_norms: of the inner decoder's, (B S, 1, 1, D) each, or (B S, H, 1, D) as released.
    """

    z: jax.Array
    outer_norms: tuple[NormCondition, ...]
    inner_norms: tuple[NormCondition, ...]


@flax.struct.dataclass
class RowCarry:
    """State that passes from row to row.

    Attributes:
        context: (B S, 1, W, D) outer context of the row to come.
        caches: keys and values of finished rows, one a column block of the outer decoder.
        weights: of the particles, a filter for each of the B S samples.
    """

    context: jax.Array
    caches: Caches
    weights: particles.Weights


@flax.struct.dataclass
class DecodedRows:
    """R decoded rows of all particles.

    Attributes:
        coarse: (B S P, R, W) int32 in 0..511.
        log_probability_bits: (B S P, R, W) float32; see `CoarseSamples`, for this and the next three.
        max_probability: (B S P, R, W) float32.
        entropy_bits: (B S P, R, W) float32.
        num_iterations: (B S P, R) int32.
        ancestors: (B S, R, P) int32, at the end of each row, the particle that each particle becomes a copy of; None
            for one particle.
    """

    coarse: jax.Array
    log_probability_bits: jax.Array
    max_probability: jax.Array
    entropy_bits: jax.Array
    num_iterations: jax.Array
    ancestors: jax.Array | None


@functools.partial(jax.jit, static_argnames="model")
def encode(model: Colorizer, params: Parameters, gray: UInt8[Array, "B H W 1"]) -> Float[Array, "B H W D"]:
    """Returns z of the gray encoder, once per image however many samples."""
    return model.apply({"params": params}, gray, method="encode")


@functools.partial(jax.jit, static_argnames=("model", "as_released", "decoder", "window", "num_particles"))
def sample(
    model: Colorizer,
    params: Parameters,
    z: Float[Array, "B H W D"],
    noise: Noise,
    temperature: Float[Array, ""] | float = 1.0,
    min_p: Float[Array, ""] | float = 0.0,
    top_p: Float[Array, ""] | float | None = None,
    known: KnownCoarse | None = None,
    content: Float[Array, "B H W V"] | None = None,
    *,
    num_particles: int = 1,
    as_released: bool = False,
    decoder: str = "sequential",
    window: int = 8,
) -> CoarseSamples:
    """Samples coarse images.

    Args:
        model: the colorizer.
        params: its parameters.
        z: from `encode`.
        noise: decides draws and number of samples S.
        temperature: divides the logits.
        min_p: colours whose probability, at temperature one, is below that of the most probable colour times this are
            never drawn; 0 for no such limit. The log-likelihood stays that of the untruncated distribution.
        top_p: only the most probable colours that together have this probability, at temperature one, are drawn; None
            for no such limit.
        known: coarse colours that are known; None for none.
        content: what the content adds to the logits at temperature one, of `coltran_jax.sampling.content.tilt`; None
            for no guidance. The limits min_p and top_p are those of the guided distribution. The log-likelihood stays
            that of the network.
        num_particles: P, copies of each sample that are decoded together, of which the result is one. Without known
            colours it is the first, which is as the sample would be alone. With them, samples converge to the
            posterior as P grows. A known colour counts by its probability at the temperature, untruncated. With a
            guide the limits min_p and top_p are those of the tilted distribution.
        as_released: condition the inner decoder's norms on one row of z at a time, as the release does when it
            samples; otherwise on the whole image, as in training.
        decoder: one of `coltran_jax.sampling.options.DECODERS`; how rows are found, not which.
        window: pixels that "fixed_point" iterates over at a time.
    """
    carry = begin(model, params, z, noise, num_particles=num_particles)
    how = {"num_particles": num_particles, "as_released": as_released, "decoder": decoder, "window": window}
    options = (temperature, min_p, top_p, known, content)
    carry, rows = decode_rows(model, params, z, noise, *options, carry, 0, num_rows=z.shape[1], **how)
    return chosen_samples(noise, known, carry, rows)


# The three steps of `sample`, for callers who want to see rows as they are decoded.


@functools.partial(jax.jit, static_argnames=("model", "num_particles"))
def begin(
    model: Colorizer, params: Parameters, z: Float[Array, "B H W D"], noise: Noise, *, num_particles: int = 1
) -> RowCarry:
    """Returns the state before the first row; see `sample`."""
    num_filters = z.shape[0] * noise.num_samples
    batch = num_filters * num_particles
    caches, _ = model.apply({"params": params}, batch, method="empty_caches")
    weights = particles.Weights.equal(num_filters, num_particles)
    return RowCarry(jnp.zeros((batch, 1, *z.shape[2:]), z.dtype), caches, weights)


@functools.partial(jax.jit, static_argnames=("model", "num_rows", "as_released", "decoder", "window", "num_particles"))
def decode_rows(
    model: Colorizer,
    params: Parameters,
    z: Float[Array, "B H W D"],
    noise: Noise,
    temperature: Float[Array, ""] | float,
    min_p: Float[Array, ""] | float,
    top_p: Float[Array, ""] | float | None,
    known: KnownCoarse | None,
    content: Float[Array, "B H W V"] | None,
    carry: RowCarry,
    first: Int[Array, ""] | int,
    *,
    num_rows: int,
    num_particles: int = 1,
    as_released: bool = False,
    decoder: str = "sequential",
    window: int = 8,
) -> tuple[RowCarry, DecodedRows]:
    """Decodes `num_rows` rows from the row `first` on, from the state `carry` before them.

    The other arguments are those of `sample`.

    Returns:
        The state after them, and the rows.
    """
    params = in_compute_dtype(params, model.compute.dtype)

    def apply(method: str, *args: Any) -> Any:
        return model.apply({"params": params}, *args, method=method)

    log_min_p = jnp.log(jnp.asarray(min_p, jnp.float32))
    height, width = z.shape[1:3]
    filters, noise = noise, noise.particles(num_particles)
    batch = len(z) * noise.num_samples
    known = KnownCoarse(jnp.full(z.shape[:3], -1)) if known is None else known
    limits = (temperature, log_min_p, top_p)

    def per_sample(tree):
        return jax.tree.map(lambda x: jnp.repeat(x, noise.num_samples, axis=0), tree)

    outer_norms, inner_norms = per_sample(apply("begin", z, as_released))
    image = _Image(z, outer_norms, inner_norms)
    if decoder == "fixed_point":
        decode = functools.partial(row_decoders.fixed_point, window=min(window, width))
    elif not model.compute.uses_pallas:
        decode = row_decoders.sequential
    else:
        decode = functools.partial(row_decoders.in_one_kernel, model, row_kernel.prepare(model, params), limits)

    def draw(logits: jax.Array, noise: jax.Array, known: jax.Array, tilt: jax.Array | None) -> jax.Array:
        tilted = logits if tilt is None else logits + temperature * tilt
        drawn = jnp.argmax(perturbed(tilted, noise, *limits), axis=-1)
        return jnp.where(known >= 0, known, drawn)

    def weighted(weights: particles.Weights, row: jax.Array, of_known: tuple[jax.Array, Any], colors, logits):
        (its_colors, tilt), shape = of_known, weights.log_weights.shape
        is_known = its_colors >= 0
        # A known colour counts by its probability without limits.
        its_log_min_p = jnp.where(is_known, -jnp.inf, log_min_p)[..., None]
        its_top_p = None if top_p is None else jnp.where(is_known, 1, top_p)[..., None]
        total, tilted_total = log_totals(logits, tilt, temperature, its_log_min_p, its_top_p)
        grown = 0 if tilted_total is None else tilted_total - total
        gained = jnp.where(is_known, chosen_of(logits, colors) / temperature - total, grown)
        if tilt is not None:
            tilts = jnp.where(is_known, 0, chosen_of(tilt, colors)).sum(axis=-1).reshape(shape)
            weights = weights.tilted(tilts, jnp.repeat(known.part_reached(row), filters.num_samples))
        return weights.gathered(gained.sum(axis=-1).reshape(shape))

    def draw_row(carry: RowCarry, row: jax.Array):
        z_row = jax.lax.dynamic_slice_in_dim(image.z, row, 1, axis=1)
        outer_conditions = per_sample(apply("condition_outer", z_row))
        z_row = per_sample(z_row)
        base, conditions = apply("begin_row", row, z_row, carry.context)
        norms = image.inner_norms
        if as_released:
            norms = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1, axis=1), norms)
        row_noise = noise.row(row, width).reshape(batch, width, NUM_COARSE_COLORS)
        of_known = per_sample((known.row(row), known.tilt(row)))
        of_content = None
        if content is not None:
            of_content = per_sample(jax.lax.dynamic_index_in_dim(content, row, axis=1, keepdims=False))
        tilts = jax.tree.leaves((of_known[1], of_content))
        row_state = row_decoders.Row(
            z_row, base, conditions, norms, row_noise, of_known[0], sum(tilts) if tilts else None
        )
        colors, logits, iterations = decode(apply, draw, row_state)
        context, caches = apply(
            "finish_row", colors[:, None], z_row, row, carry.caches, outer_conditions, image.outer_norms
        )
        guided = logits if of_content is None else logits + temperature * of_content
        carry = RowCarry(context, caches, weighted(carry.weights, row, of_known, colors, guided))
        ancestors = None
        if num_particles > 1:
            # Of the last row, one is chosen instead.
            carry, ancestors = _resampled(carry, filters.uniforms(row).ravel(), row, row < height - 1)
        return carry, DecodedRows(colors, *statistics(logits, colors), iterations, ancestors)

    carry, rows = jax.lax.scan(draw_row, carry, first + jnp.arange(num_rows))
    return carry, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), rows)


@jax.jit
def chosen_samples(noise: Noise, known: KnownCoarse | None, carry: RowCarry, rows: DecodedRows) -> CoarseSamples:
    """Chooses a particle of each sample from all rows and the state after the last; for the others, see `sample`."""
    num_filters, num_particles = carry.weights.log_weights.shape
    height = rows.coarse.shape[1]
    shape = (num_filters // noise.num_samples, noise.num_samples)
    values = (rows.coarse, rows.log_probability_bits, rows.max_probability, rows.entropy_bits, rows.num_iterations)
    # (B S P, H, ...) -> (B S, H, P, ...), and of each row one.
    values = [jnp.moveaxis(x.reshape(num_filters, num_particles, *x.shape[1:]), 1, 2) for x in values]
    lineage = jnp.zeros((num_filters, height), jnp.int32)
    if rows.ancestors is not None and known is not None:
        last = particles.chosen(carry.weights.log_weights, noise.uniforms(height).ravel())
        last = jnp.where(jnp.repeat(known.some, noise.num_samples), last, 0)
        lineage = particles.lineage(rows.ancestors.swapaxes(0, 1), last).T
    values = [jnp.take_along_axis(x, jnp.expand_dims(lineage, range(2, x.ndim)), axis=2)[:, :, 0] for x in values]
    return CoarseSamples(
        *(x.reshape(*shape, *x.shape[1:]) for x in values),
        log_evidence_bits=carry.weights.total_log_evidence.reshape(shape) * _BITS,
        effective_particles=carry.weights.effective.reshape(shape),
    )


def _resampled(carry: RowCarry, uniforms: jax.Array, row: jax.Array, allowed: jax.Array) -> tuple[RowCarry, jax.Array]:
    """Resamples the particles of filters whose weights have collapsed.

    Args:
        carry: at the end of a row.
        uniforms: (B S,), see `coltran_jax.sampling.particles.systematic`.
        row: its number.
        allowed: whether to resample at all.

    Returns:
        The carry, and for each particle the one that it becomes a copy of (B S, P), most often itself.
    """
    log_weights = carry.weights.log_weights
    num_filters, num_particles = log_weights.shape
    where = particles.collapsing(log_weights) & allowed
    themselves = jnp.arange(num_particles)
    ancestors = jnp.where(where[:, None], particles.systematic(log_weights, uniforms), themselves)
    images = (jnp.arange(num_filters)[:, None] * num_particles + ancestors).ravel()

    def reordered(carry: RowCarry) -> RowCarry:
        caches = tuple(cache.reordered(images, carry.context.shape[2], row + 1) for cache in carry.caches)
        return RowCarry(carry.context[images], caches, carry.weights.resampled(where, ancestors))

    # Images without known colours never pay for it.
    return jax.lax.cond(where.any(), reordered, lambda carry: carry, carry), ancestors


# Natural logarithms in bits.
_BITS = 1 / np.log(2).astype(np.float32)


@flax.struct.dataclass
class Scores:
    """Probabilities of given coarse images, pixel by pixel.

    Attributes:
        log_probability_bits: (B, H, W) float32, base 2, of each pixel's colour.
        max_probability: (B, H, W) float32, of the most probable colour.
        is_most_probable: (B, H, W) bool, whether it is the given one.
    """

    log_probability_bits: jax.Array
    max_probability: jax.Array
    is_most_probable: jax.Array


@functools.partial(jax.jit, static_argnames="model")
def score(model: Colorizer, params: Parameters, gray: jax.Array, coarse: jax.Array) -> Scores:
    """Scores given coarse images, the network run as trained.

    Args:
        model: the colorizer.
        params: its parameters.
        gray: (B, H, W, 1) uint8.
        coarse: (B, H, W) integers in 0..511.
    """
    logits, _ = model.apply({"params": params}, gray, coarse)
    log_probability_bits, max_probability, _ = statistics(logits, coarse)
    return Scores(log_probability_bits, max_probability, jnp.argmax(logits, axis=-1) == coarse)


def statistics(logits: jax.Array, colors: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Base-2 log-probability of the colours, largest probability, entropy in bits: (..., 512), (...) -> (...) each."""
    log_probabilities = jax.nn.log_softmax(logits)
    probabilities = jnp.exp(log_probabilities)
    entropy = -jnp.sum(probabilities * log_probabilities, axis=-1)
    return chosen_of(log_probabilities, colors) * _BITS, probabilities.max(axis=-1), entropy * _BITS


def chosen_of(values: jax.Array, colors: jax.Array) -> jax.Array:
    """Returns the values of the colours: (..., 512), (...) -> (...)."""
    return jnp.take_along_axis(values, colors[..., None], axis=-1)[..., 0]
