"""All networks by name, and what the code around them needs of each."""

import functools
import types
from collections.abc import Mapping

import flax.linen as nn
import jax

from coltran_jax.config import NetworkConfig
from coltran_jax.networks.base import Network
from coltran_jax.networks.color_upsampler import ColorUpsamplerNetwork
from coltran_jax.networks.colorizer import ColorizerNetwork
from coltran_jax.networks.joint_upsampler import JointUpsamplerNetwork
from coltran_jax.networks.spatial_upsampler import SpatialUpsamplerNetwork
from coltran_jax.nn.compute import DEFAULT, Compute
from coltran_jax.nn.parameters import Parameters

_NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        ColorizerNetwork(),
        ColorUpsamplerNetwork(),
        SpatialUpsamplerNetwork(),
        JointUpsamplerNetwork(),
    )
}
NETWORKS: Mapping[str, Network] = types.MappingProxyType(_NETWORKS)


def network_of(config: NetworkConfig) -> Network:
    """The network whose configuration this is."""
    return next(network for network in NETWORKS.values() if type(config) is network.config_class)


def build(config: NetworkConfig, compute: Compute = DEFAULT) -> nn.Module:
    """Returns the module of a configuration."""
    return network_of(config).build(config, compute)


def initialize(config: NetworkConfig, key: jax.Array, *, boxed: bool = False) -> Parameters:
    """Fresh parameters, float32; `boxed` with the logical names of their axes, as Flax's `Partitioned`."""
    params = build(config).init(key, *network_of(config).example(config))["params"]
    return params if boxed else nn.unbox(params)


@functools.cache
def parameter_shapes(config: NetworkConfig) -> Parameters:
    """Shapes and types of the parameters, as `jax.ShapeDtypeStruct`; nothing is computed or allocated."""
    return jax.eval_shape(functools.partial(initialize, config), jax.random.key(0))
