"""Export of training runs to a bundle."""

import pathlib
import types
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax.checkpoints.bundles import Bundle, check_recommended, load_bundle, save_bundle
from coltran_jax.errors import CheckpointError
from coltran_jax.training.checkpoints import load_average


def export(
    workdirs: Mapping[str, pathlib.Path],
    output: pathlib.Path,
    dtype: jnp.dtype = jnp.float32,
    recommended: Mapping[str, float] = types.MappingProxyType({}),
) -> Iterator[str]:
    """Averaged weights of a run for each network -> a bundle.

    Args:
        workdirs: by the network's name; "WORKDIR@STEP" for a step, else the best by holdout bits, else the latest. A
            bundle gives the network that it holds.
        output: the bundle to write.
        dtype: to store parameters in.
        recommended: sampling options to put into the bundle; see `coltran_jax.checkpoints.bundles.Bundle`.

    Yields:
        One line a network, and one for the bundle.

    Raises:
        CheckpointError: no such checkpoint, or a run of another network.
        WeightsError: a bundle that lacks the network or cannot be used.
    """
    check_recommended(recommended)
    found, params = {}, {}
    for name, given in workdirs.items():
        workdir = pathlib.Path(given)
        if workdir.is_file():
            bundle = load_bundle(workdir, required=[name])
            found[name], params[name] = bundle.configs[name], bundle.params[name]
            yield f"{name}: of {workdir}"
            continue
        folder, _, step = str(workdir).rpartition("@")
        if folder and step.isdigit() and not workdir.exists():
            config, average, taken = load_average(pathlib.Path(folder), int(step))
        else:
            config, average, taken = load_average(workdir)
        if config.network != name:
            raise CheckpointError(f"{workdir}: a run of the {config.network}, expected one of the {name}")
        found[name], params[name] = config.model, jax.tree.map(np.asarray, average)
        yield f"{name}: step {taken} of {workdir}"
    save_bundle(output, Bundle(found, params, recommended), dtype)
    yield f"wrote {output} ({', '.join(found)})"
