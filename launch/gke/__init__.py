"""Training runs as JobSets on Google Kubernetes Engine, a TPU slice each."""

import json
import math
import pathlib
import re
import string
from collections.abc import Mapping, Sequence

from coltran_jax.errors import UsageError

TEMPLATE = pathlib.Path(__file__).parent / "jobset.yaml"

# Generation -> what GKE calls its slices, and chips a worker of a slice of several.
_ACCELERATORS = {
    "v4": ("tpu-v4-podslice", 4),
    "v5e": ("tpu-v5-lite-podslice", 4),
    "v5p": ("tpu-v5p-slice", 4),
    "v6e": ("tpu-v6e-slice", 4),
}

# Keys of `manifest`'s options, with their defaults; None for those that must be given.
OPTIONS: Mapping[str, str | None] = {
    "image": None,
    "topology": None,
    "bucket": None,
    "namespace": "default",
    "service_account": "default",
    "restarts": "10",
    "slices": "1",
}


def check_options(options: Mapping[str, str]) -> dict[str, str]:
    """Options with their defaults filled in.

    Raises:
        UsageError: an unknown or missing one, or a topology or number that cannot be.
    """
    for key in options:
        if key not in OPTIONS:
            raise UsageError(f"{key}: no option of gke, expected {', '.join(OPTIONS)}")
    for key, default in OPTIONS.items():
        if default is None and not options.get(key):
            raise UsageError(f"gke needs the option {key}")
    filled = {key: options.get(key, default) for key, default in OPTIONS.items()}
    slice_of(filled["topology"])
    for key, smallest in (("restarts", 0), ("slices", 1)):
        if not filled[key].isdigit() or int(filled[key]) < smallest:
            raise UsageError(f"{key} is {filled[key]!r}, expected a whole number, {smallest} or more")
    return filled


def slice_of(topology: str) -> tuple[str, str, int, int]:
    """Returns, of "v5e:4x4", GKE's name of the accelerator, its topology, workers, and chips a worker.

    Raises:
        UsageError: no such topology.
    """
    generation, _, sides = topology.partition(":")
    if generation not in _ACCELERATORS or not re.fullmatch(r"\d+(x\d+){1,2}", sides):
        raise UsageError(f"topology {topology!r}: expected GENERATION:AxB or AxBxC, of {', '.join(_ACCELERATORS)}")
    name, per_worker = _ACCELERATORS[generation]
    chips = math.prod(map(int, sides.split("x")))
    if chips > per_worker and chips % per_worker:
        raise UsageError(f"topology {topology!r}: {chips} chips, expected a multiple of {per_worker}")
    return name, sides, max(1, chips // per_worker), min(chips, per_worker)


def manifest(name: str, command: Sequence[str], options: Mapping[str, str]) -> str:
    """The JobSet that runs a command on every worker of one or several slices, as YAML.

    Args:
        name: of the run; letters, digits and hyphens are kept.
        command: of the container.
        options: see `OPTIONS`.

    Raises:
        UsageError: options that cannot be used.
    """
    filled = check_options(options)
    accelerator, topology, workers, chips = slice_of(filled.pop("topology"))
    # Kubernetes puts the name into host names with a suffix of its own.
    label = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:40].strip("-")
    values = {
        **filled,
        "name": label,
        "command": json.dumps(list(command)),
        "accelerator": accelerator,
        "topology": topology,
        "workers": workers,
        "chips": chips,
    }
    return string.Template(TEMPLATE.read_text()).substitute(values)
