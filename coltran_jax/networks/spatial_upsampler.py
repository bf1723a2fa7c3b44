"""The spatial upsampler: RGB -> RGB at a higher resolution."""

from coltran_jax.config import SpatialUpsamplerConfig
from coltran_jax.networks.upsampler import UpsamplerNetwork
from coltran_jax.nn.upsamplers import SpatialUpsampler


class SpatialUpsamplerNetwork(UpsamplerNetwork):
    """The spatial upsampler: RGB -> RGB at a higher resolution."""

    name = "spatial_upsampler"
    config_class = SpatialUpsamplerConfig
    module_class = SpatialUpsampler
    reads = "rgb"
    enlarges = True
