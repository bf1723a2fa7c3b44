"""Guidance by content: more of what the gray encoder alone says of a pixel, beyond what its gray value says.

The decoders mostly go on with the colours that they began with. The parallel head, which sees no colours, tells what
the image shows, but prefers gray. The ratio of its probabilities to those by gray value alone is what the content says,
and colours are drawn from

    p(colour | colours before it, image) (p(colour | image) / p(colour | gray value) ^ 0.7) ^ guidance,

normalized for each pixel. With a power of 1 in place of 0.7, rare colours are favoured too much; docs/lab_notebook.md
has the figures. Guidance is not in the paper. Classifier-free guidance (Ho and Salimans, 2022) does the same for
diffusion models.
"""

import functools

import jax
from jaxtyping import Array, Float, Float32, UInt8

from coltran_jax.images.arrays import NUM_COARSE_COLORS
from coltran_jax.nn.colorizer import Colorizer
from coltran_jax.nn.parameters import Parameters

# Of a table of the logarithms of the probabilities of coarse colours by gray value.
TABLE_SHAPE = (256, NUM_COARSE_COLORS)
_POWER = 0.7


@functools.partial(jax.jit, static_argnames="model")
def tilt(
    model: Colorizer,
    params: Parameters,
    z: Float[Array, "B H W D"],
    gray: UInt8[Array, "B H W 1"],
    table: Float32[Array, "G V"],
    guidance: Float[Array, ""] | float,
) -> Float32[Array, "B H W V"]:
    """Returns what the guidance adds to the logits at temperature one.

    Args:
        model: the colorizer, which has a parallel head.
        params: its parameters.
        z: of its gray encoder.
        gray: what it encodes.
        table: natural logarithms of the probabilities of coarse colours by gray value; see `TABLE_SHAPE`.
        guidance: the exponent.
    """
    return tilt_by(model.apply({"params": params}, z, method="parallel_logits"), gray, table, guidance)


@jax.jit
def tilt_by(
    parallel_logits: Float32[Array, "B H W V"],
    gray: UInt8[Array, "B H W 1"],
    table: Float32[Array, "G V"],
    guidance: Float[Array, ""] | float,
) -> Float32[Array, "B H W V"]:
    """Returns the same, given the logits of the parallel head."""
    return guidance * (jax.nn.log_softmax(parallel_logits) - _POWER * table[gray[..., 0]])
