"""Work spread over devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """A copy of every array on every device."""
    return jax.device_put(tree, NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec()))


def spread(
    function: Callable[..., Any], devices: Sequence[jax.Device], whole: Sequence[int] = (0,)
) -> Callable[..., Any]:
    """Each device applies `function` to its share of the leading axis, without any communication.

    Args:
        function: of positional arguments (trees of arrays); its results have the leading axis too.
        devices: one or more.
        whole: positions of the arguments that every device gets whole. The leading axis of all others is cut; where
            it is no multiple of the number of devices, its last entry is repeated, and the result cut again.
    """
    if len(devices) == 1:
        return function
    mesh = Mesh(np.array(devices), ("data",))

    def on_each(*args):
        specs = tuple(PartitionSpec() if i in whole else PartitionSpec("data") for i in range(len(args)))
        # Scans start from constants and go on with shares, which the check of varying axes would refuse.
        mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("data"), check_vma=False)
        return mapped(*args)

    compiled = jax.jit(on_each)

    def filled(*args):
        shares = [arg for i, arg in enumerate(args) if i not in whole]
        size = jax.tree.leaves(shares)[0].shape[0]
        fill = -size % len(devices)
        if not fill:
            return compiled(*args)
        indices = jnp.minimum(jnp.arange(size + fill), size - 1)
        args = [a if i in whole else jax.tree.map(lambda x: jnp.asarray(x)[indices], a) for i, a in enumerate(args)]
        return jax.tree.map(lambda x: x[:size], compiled(*args))

    return filled
