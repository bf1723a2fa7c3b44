"""One upsampler for colour and resolution at once, an ablation of the paper."""

from coltran_jax.config import JointUpsamplerConfig
from coltran_jax.networks.upsampler import UpsamplerNetwork
from coltran_jax.nn.upsamplers import JointUpsampler


class JointUpsamplerNetwork(UpsamplerNetwork):
    """One upsampler for colour and resolution at once, an ablation of the paper."""

    name = "joint_upsampler"
    config_class = JointUpsamplerConfig
    module_class = JointUpsampler
    reads = "coarse"
    enlarges = True
