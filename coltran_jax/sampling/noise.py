"""The noise that decides the draws: given the noise, a coarse image is a function of the grayscale image."""

import functools
import zlib

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax.images.arrays import NUM_COARSE_COLORS

# The particles of a sample have its number, plus this for each particle before them.
_SAMPLES_APART = 2**16
_RESAMPLING = zlib.crc32(b"resampling")
# As many as change a float32 between 0 and 1.
_HALVINGS = 26


@flax.struct.dataclass
class SeededNoise:
    """Gumbel noise that belongs to (seed, image, sample, row, column), whatever the batch or the devices.

    Attributes:
        keys: (B,) typed keys, of seed and image; see `image_keys`.
        samples: (B, S) int, the samples' numbers.
    """

    keys: jax.Array
    samples: jax.Array

    @property
    def num_samples(self) -> int:
        """S."""
        return self.samples.shape[1]

    def particles(self, count: int) -> "SeededNoise":
        """Noise of several particles of each sample, (B, S P); the first has that of the sample."""
        numbers = self.samples[..., None] + _SAMPLES_APART * jnp.arange(count)
        return SeededNoise(self.keys, numbers.reshape(len(self.samples), -1))

    def uniforms(self, row: jax.Array) -> jax.Array:
        """(B, S) float32 in [0, 1), by which the samples' particles are resampled at the end of a row."""

        def one(key, sample):
            for index in (_RESAMPLING, sample, row):
                key = jax.random.fold_in(key, index)
            return jax.random.uniform(key)

        return jax.vmap(jax.vmap(one, (None, 0)))(self.keys, self.samples)

    def row(self, row: jax.Array, width: int) -> jax.Array:
        """(B, S, W, 512) float32."""

        def pixel(key, sample, column):
            for index in (sample, row, column):
                key = jax.random.fold_in(key, index)
            return jax.random.gumbel(key, (NUM_COARSE_COLORS,), jnp.float32)

        over_columns = jax.vmap(pixel, (None, None, 0))
        over_samples = jax.vmap(over_columns, (None, 0, None))
        return jax.vmap(over_samples, (0, 0, None))(self.keys, self.samples, jnp.arange(width))


@flax.struct.dataclass
class ExplicitNoise:
    """Noise given as an array (B, S, H, W, 512) float32."""

    values: jax.Array

    @property
    def num_samples(self) -> int:
        """S."""
        return self.values.shape[1]

    def particles(self, count: int) -> "ExplicitNoise":
        """Itself: there is noise of one particle of each sample.

        Raises:
            ValueError: more particles.
        """
        _check_one_particle(self, count)
        return self

    def row(self, row: jax.Array, width: int) -> jax.Array:
        """(B, S, W, 512) float32."""
        del width
        return jax.lax.dynamic_index_in_dim(self.values, row, axis=2, keepdims=False)


@flax.struct.dataclass
class NoNoise:
    """Greedy: the most probable colour of every pixel.

    Attributes:
        samples: (B, S) int, the samples' numbers; all the same image.
    """

    samples: jax.Array

    @property
    def num_samples(self) -> int:
        """S."""
        return self.samples.shape[1]

    def particles(self, count: int) -> "NoNoise":
        """Itself: particles that are not drawn would all be the same.

        Raises:
            ValueError: more particles.
        """
        _check_one_particle(self, count)
        return self

    def row(self, row: jax.Array, width: int) -> jax.Array:
        """(B, S, W, 512) float32 zeros."""
        del row
        return jnp.zeros((*self.samples.shape, width, NUM_COARSE_COLORS), jnp.float32)


Noise = SeededNoise | ExplicitNoise | NoNoise


def _check_one_particle(noise: Noise, count: int) -> None:
    if count != 1:
        raise ValueError(f"{type(noise).__name__} is for one particle of each sample, got {count}")


def image_keys(seed: int, grays: np.ndarray, *, shared: bool = False) -> jax.Array:
    """Keys for `SeededNoise`: (B, H, W, 1) uint8, images as the colorizer sees them -> (B,) typed keys.

    An image is known by its content, through two checksums of it. All images have the same key where it is `shared`.
    """
    contents = [np.ascontiguousarray(gray).tobytes() for gray in grays]
    checksums = np.array([(zlib.crc32(content), zlib.adler32(content)) for content in contents], np.uint32)
    return _keys(np.uint32(seed % 2**32), checksums, shared)


# One program: each of its operations alone would be compiled, and a command's first image would wait for them.
@functools.partial(jax.jit, static_argnums=2)
def _keys(seed: jax.Array, checksums: jax.Array, shared: bool) -> jax.Array:
    stream = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"coarse colours"))
    if shared:
        return jnp.repeat(stream[None], len(checksums))
    return jax.vmap(lambda pair: jax.random.fold_in(jax.random.fold_in(stream, pair[0]), pair[1]))(checksums)


def perturbed(
    logits: jax.Array,
    noise: jax.Array,
    temperature: jax.Array | float,
    log_min_p: jax.Array | float,
    top_p: jax.Array | float | None = None,
) -> jax.Array:
    """Returns the perturbed logits, whose largest is the draw.

    Args:
        logits: (..., 512) float32.
        noise: (..., 512) float32.
        temperature: divides the logits.
        log_min_p: natural logarithm of the probability, as a part of the largest, below which a colour is not drawn.
        top_p: only colours of the nucleus are drawn, the most probable ones that together have this probability; None
            for no such limit.

    Returns:
        (..., 512) float32, minus infinity for colours that are not drawn.
    """
    return jnp.where(_allowed(logits, log_min_p, top_p), logits / temperature + noise, -jnp.inf)


def log_totals(
    logits: jax.Array,
    tilt: jax.Array | None,
    temperature: jax.Array | float,
    log_min_p: jax.Array | float,
    top_p: jax.Array | float | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Sums of exp(logits / temperature) over colours that are drawn, as natural logarithms, without and with a tilt.

    Args:
        logits: (..., 512) float32.
        tilt: (..., 512) float32, what a guide adds to the logits at temperature one, 0 at most and of moderate size;
            None for none.
        temperature: see `perturbed`, for this and the next two, (..., 1) where they differ from pixel to pixel.
        log_min_p: float32.
        top_p: float32.

    Returns:
        Both (...) float32, the second None without a tilt.
    """
    scaled = logits / temperature
    largest = jnp.max(scaled, axis=-1, keepdims=True)
    # The one exponential is for both sums.
    terms = jnp.exp(scaled - largest)

    def log_sum(tilted: jax.Array, terms: jax.Array) -> jax.Array:
        return jnp.log(jnp.sum(jnp.where(_allowed(tilted, log_min_p, top_p), terms, 0), axis=-1)) + largest[..., 0]

    if tilt is None:
        return log_sum(logits, terms), None
    return log_sum(logits, terms), log_sum(logits + temperature * tilt, terms * jnp.exp(tilt))


def _allowed(logits: jax.Array, log_min_p: jax.Array | float, top_p: jax.Array | float | None) -> jax.Array:
    """Returns which colours may be drawn."""
    allowed = logits >= jnp.max(logits, axis=-1, keepdims=True) + log_min_p
    if top_p is not None:
        allowed &= _in_nucleus(logits, top_p)
    return allowed


def _in_nucleus(logits: jax.Array, top_p: jax.Array | float) -> jax.Array:
    """Returns which colours are in the smallest set of the most probable ones that has probability `top_p`.

    The set's least probability is found by bisection, which needs no sorting, so that it runs in a kernel, too.
    """
    probabilities = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    needed = top_p * jnp.sum(probabilities, axis=-1, keepdims=True)

    def halved(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.sum(jnp.where(probabilities >= middle, probabilities, 0), axis=-1, keepdims=True) >= needed
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    # With the lower bound the set has the probability, with the upper one it has not, or is the most probable colour.
    low, _ = jax.lax.fori_loop(0, _HALVINGS, halved, (jnp.zeros_like(needed), jnp.ones_like(needed)))
    return probabilities >= low
