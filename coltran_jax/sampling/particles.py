"""Particles: copies of an image that are decoded together, so that colours known beforehand bear on earlier pixels.

A known pixel is set, not drawn. The pixels before it were drawn without looking at it: some copies of the image suit it
and others do not, and its probability under each copy is that copy's weight. Where few copies carry most of the weight,
copies are resampled at the end of a row. With P copies this is sequential Monte Carlo, a particle filter, which
converges to the posterior given all known colours as P grows (Doucet and Johansen, "A Tutorial on Particle Filtering
and Smoothing", 2009, Section 3.5).
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

# Copies are resampled where fewer than this part of them carry the weight.
_RESAMPLE_BELOW = 0.5


@flax.struct.dataclass
class Weights:
    """The weights of F filters of P particles each, at the end of a row.

    Attributes:
        log_weights: (F, P) float32, natural logarithms, gathered since particles were last resampled.
        log_evidence: (F,) float32, natural logarithm of the part of the evidence that was gathered before.
        effective: (F,) float32, the smallest effective number of particles so far.
        owed: (F, P) float32, natural logarithms, what a guide has made of the probability of draws so far and the
            weights do not have yet.
    """

    log_weights: jax.Array
    log_evidence: jax.Array
    effective: jax.Array
    owed: jax.Array

    @classmethod
    def equal(cls, num_filters: int, num_particles: int) -> "Weights":
        """Returns the weights before the first row."""
        zeros = jnp.zeros((num_filters, num_particles), jnp.float32)
        return cls(zeros, zeros[:, 0], jnp.full(num_filters, num_particles, jnp.float32), zeros)

    def gathered(self, log_probabilities: Float[Array, "F P"]) -> "Weights":
        """Returns the weights after a row whose known colours have these log-probabilities, 0 where there are none."""
        log_weights = self.log_weights + log_probabilities
        effective = jnp.minimum(self.effective, effective_number(log_weights))
        return self.replace(log_weights=log_weights, effective=effective)

    def tilted(self, tilts: Float[Array, "F P"], part: Float[Array, " F"]) -> "Weights":
        """Returns the weights after a row whose draws were tilted by a guide towards known colours.

        What the tilts have made of the probability of draws is taken from the weights when the known colours are
        reached that the guide had in view: until then no particle is better for it.

        Args:
            tilts: of the row's draws, natural logarithms.
            part: the part that the row has of all known pixels that are left, by which tilts are taken from weights.
        """
        owed = self.owed + tilts
        taken = owed * part[:, None]
        return self.replace(log_weights=self.log_weights - taken, owed=owed - taken)

    def resampled(self, where: Bool[Array, " F"], ancestors: Int[Array, "F P"]) -> "Weights":
        """Returns the weights after some filters' particles were resampled; of the others, each is its own ancestor."""
        return self.replace(
            log_weights=jnp.where(where[:, None], 0, self.log_weights),
            log_evidence=jnp.where(where, self.log_evidence + _log_mean(self.log_weights), self.log_evidence),
            owed=jnp.take_along_axis(self.owed, ancestors, axis=1),
        )

    @property
    def total_log_evidence(self) -> Float[Array, " F"]:
        """Natural logarithm of an unbiased estimate of the probability of all known colours so far."""
        return self.log_evidence + _log_mean(self.log_weights)


def effective_number(log_weights: Float[Array, "F P"]) -> Float32[Array, " F"]:
    """Returns the effective number of particles, 1 to P: of equal ones that would estimate as well."""
    return 1 / jnp.sum(jax.nn.softmax(log_weights) ** 2, axis=-1)


def collapsing(log_weights: Float[Array, "F P"]) -> Bool[Array, " F"]:
    """Returns which filters are to be resampled."""
    return effective_number(log_weights) < _RESAMPLE_BELOW * log_weights.shape[1]


def systematic(log_weights: Float[Array, "F P"], uniforms: Float[Array, " F"]) -> Int[Array, "F P"]:
    """Systematic resampling: the particle that each particle becomes a copy of.

    Args:
        log_weights: natural logarithms.
        uniforms: random numbers in [0, 1), one a filter.

    Returns:
        Numbers of particles in ascending order; particle p is there P times its share of the weight,
        rounded down or up.
    """
    num_particles = log_weights.shape[1]
    cumulative = jnp.cumsum(jax.nn.softmax(log_weights), axis=-1)
    positions = (uniforms[:, None] + jnp.arange(num_particles)) / num_particles
    found = jax.vmap(lambda c, p: jnp.searchsorted(c, p, side="right"))(cumulative / cumulative[:, -1:], positions)
    return jnp.minimum(found, num_particles - 1)


def chosen(log_weights: Float[Array, "F P"], uniforms: Float[Array, " F"]) -> Int[Array, " F"]:
    """Returns one particle of each filter, drawn by weight."""
    cumulative = jnp.cumsum(jax.nn.softmax(log_weights), axis=-1)
    found = jnp.sum(cumulative <= uniforms[:, None] * cumulative[:, -1:], axis=-1)
    return jnp.minimum(found, log_weights.shape[1] - 1)


def lineage(ancestors: Int[Array, "H F P"], last: Int[Array, " F"]) -> Int[Array, "H F"]:
    """Traces particles back.

    Args:
        ancestors: at the end of each row, the particle that each particle becomes a copy of.
        last: a particle of each filter, before resampling at the end of the last row.

    Returns:
        The particle's number in each row.
    """

    def before(particle, becomes):
        particle = jnp.take_along_axis(becomes, particle[:, None], axis=1)[:, 0]
        return particle, particle

    _, earlier = jax.lax.scan(before, last, ancestors[:-1], reverse=True)
    return jnp.concatenate([earlier, last[None]])


def _log_mean(log_weights: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(log_weights, axis=-1) - jnp.log(log_weights.shape[-1])
