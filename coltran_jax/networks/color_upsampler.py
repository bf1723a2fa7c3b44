"""The color upsampler: coarse colours -> 256 intensities a channel, at the same resolution."""

from coltran_jax.config import ColorUpsamplerConfig
from coltran_jax.networks.upsampler import UpsamplerNetwork
from coltran_jax.nn.upsamplers import ColorUpsampler


class ColorUpsamplerNetwork(UpsamplerNetwork):
    """The color upsampler: coarse colours -> 256 intensities a channel, at the same resolution."""

    name = "color_upsampler"
    config_class = ColorUpsamplerConfig
    module_class = ColorUpsampler
    reads = "coarse"
    enlarges = False
