"""Known coarse colours, as the sampler takes them, and the guide towards them."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from coltran_jax.images.arrays import BIN_WIDTH, NUM_COARSE_COLORS
from coltran_jax.images.spreading import chroma_of, spread_chroma

# Natural logarithm by which a colour is less probable whose chroma is a bin away from that of a confident guide.
_STRENGTH = 1.0
# No colour is less probable by more than this, so that sums over tilted probabilities never vanish in float32.
_LARGEST_TILT = 30.0


@flax.struct.dataclass
class KnownCoarse:
    """Known colours of images.

    Attributes:
        colors: (B, H, W) int32 in 0..511, and -1 where colours are unknown.
        chroma: (B, H, W, 3) float32, what the guide expects; see `coltran_jax.images.spreading`. None for no guide.
        confidence: (B, H, W) float32 from 0 to 1.
    """

    colors: jax.Array
    chroma: jax.Array | None = None
    confidence: jax.Array | None = None

    @classmethod
    def guided(cls, colors: np.ndarray, gray: np.ndarray) -> "KnownCoarse":
        """Returns the known colours of one image with their guide: (H, W) integers, (H, W, 1) uint8 -> no axis B."""
        return cls(colors, *spread_chroma(colors, gray))

    @classmethod
    def stacked(cls, each: Sequence["KnownCoarse"]) -> "KnownCoarse":
        """Returns the known colours of several images that are given without an axis B, all or none of them guided."""
        return jax.tree.map(lambda *arrays: np.stack(arrays), *each)

    @property
    def some(self) -> Array:
        """Returns which images have known colours, (B,) bool."""
        return (self.colors >= 0).any(axis=(1, 2))

    def row(self, row: Int[Array, ""]) -> Int[Array, "B W"]:
        """Returns the colours of a row."""
        return jax.lax.dynamic_index_in_dim(self.colors, row, axis=1, keepdims=False)

    def tilt(self, row: Int[Array, ""]) -> Float32[Array, "B W 512"] | None:
        """Returns what the guide adds to the logits of a row at temperature one; None without a guide."""
        if self.chroma is None:
            return None
        chroma, confidence = (
            jax.lax.dynamic_index_in_dim(x, row, axis=1, keepdims=False) for x in (self.chroma, self.confidence)
        )
        bins = (chroma[:, :, None] - chroma_of(np.arange(NUM_COARSE_COLORS))) / BIN_WIDTH
        return -jnp.minimum(_STRENGTH * confidence[..., None] * jnp.sum(bins**2, axis=-1), _LARGEST_TILT)

    def part_reached(self, row: Int[Array, ""]) -> Float32[Array, " B"]:
        """Returns the part that a row has of the known pixels from it on; 1 where there are none."""
        counts = jnp.sum(self.colors >= 0, axis=2)
        from_here = jnp.sum(jnp.where(jnp.arange(counts.shape[1]) >= row, counts, 0), axis=1)
        return jnp.where(from_here > 0, counts[:, row] / jnp.maximum(from_here, 1), 1.0)
