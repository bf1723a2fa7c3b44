"""The networks that an image passes through, one after another."""

from collections.abc import Mapping

from coltran_jax.config import NetworkConfig
from coltran_jax.networks.colorizer import ColorizerNetwork
from coltran_jax.networks.registry import NETWORKS
from coltran_jax.networks.upsampler import UpsamplerNetwork

COLORIZER = ColorizerNetwork.name
# As the paper's authors published them.
PUBLISHED = (COLORIZER, "color_upsampler", "spatial_upsampler")


def chain_of(network_configs: Mapping[str, NetworkConfig]) -> tuple[str, ...]:
    """Orders the networks: the colorizer, then upsamplers of colour and of resolution, or one of both.

    Raises:
        ValueError: one is missing, or there is one too many.
    """
    upsamplers = [name for name in network_configs if isinstance(NETWORKS[name], UpsamplerNetwork)]
    both = [name for name in upsamplers if NETWORKS[name].reads == "coarse" and NETWORKS[name].enlarges]
    colour = [name for name in upsamplers if NETWORKS[name].reads == "coarse" and not NETWORKS[name].enlarges]
    space = [name for name in upsamplers if NETWORKS[name].reads == "rgb"]
    listed = ", ".join(sorted(network_configs))
    missing = [] if COLORIZER in network_configs else [COLORIZER]
    if both:
        extra = sorted(set(upsamplers) - {both[0]})
        if extra:
            raise ValueError(f"has a {both[0]} and {', '.join(extra)}; expected either one upsampler or both")
    else:
        missing += [name for name, found in zip(PUBLISHED[1:], (colour, space), strict=True) if not found]
        for found in (colour, space):
            if len(found) > 1:
                raise ValueError(f"has {' and '.join(sorted(found))}, which do the same; expected one of them")
    if missing:
        raise ValueError(f"has {listed}, lacks {', '.join(missing)}")
    return (COLORIZER, *(both or [*colour, *space]))


def enlargement_of(network_configs: Mapping[str, NetworkConfig], chain: tuple[str, ...]) -> int:
    """Returns how many times larger the final image is than the coarse one.

    Raises:
        ValueError: resolutions that do not fit together.
    """
    coarse, final = network_configs[COLORIZER].resolution, network_configs[chain[-1]].resolution
    for name in chain[1:-1]:
        fine = network_configs[name].resolution
        if fine != coarse:
            title = name.replace("_", " ")
            raise ValueError(f"the {title}'s resolution is {fine}, expected the colorizer's, {coarse}")
    factors = {large // small for large, small in zip(final, coarse, strict=True) if large % small == 0}
    if len(factors) != 1 or any(large % small for large, small in zip(final, coarse, strict=True)):
        title = chain[-1].replace("_", " ")
        raise ValueError(f"the {title}'s resolution is {final}, expected a multiple of {coarse}")
    return factors.pop()
