"""Command line: a Markdown table of training steps on TPU slices that are not at hand, by their compiler's estimates.

The paper's batches on sixteen chips of each generation; as many images a chip on more chips (weak scaling); the same
batch on more chips (strong scaling), where images are cut along the mesh's spatial axis. `launch.compile` tells more of
one step. Kernels of Pallas count as long as their arithmetic takes at the device's peak rate. Compiling a step takes
half a minute to three minutes.
"""

import argparse
import dataclasses
import itertools
import os
import pathlib
import sys
from typing import NamedTuple

from coltran_jax.cli.configuration import read_config
from coltran_jax.cli.shared import failing_in_one_line, parser_for
from coltran_jax.errors import UsageError
from coltran_jax.networks.chain import PUBLISHED
from launch.compile import Compiled, compile_or_none, topology_devices


class Step(NamedTuple):
    """A training step.

    Attributes:
        network: whose configuration in `configs/` has the paper's model.
        topology: of a slice.
        batch_size: of the whole step.
        mesh: as `--mesh` takes it.
        slices: how many there are.
    """

    network: str
    topology: str
    batch_size: int
    mesh: str = ""
    slices: int = 1


_CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
_PAPER = {"colorizer": 224, "color_upsampler": 768, "spatial_upsampler": 32}
STEPS = (
    *(Step(network, slice_, _PAPER[network]) for slice_ in ("v5e:4x4", "v6e:4x4", "v5p:2x2x4") for network in _PAPER),
    Step("colorizer", "v5e:16x16", 3584),
    Step("colorizer", "v5e:16x16", 7168, slices=2),
    Step("color_upsampler", "v5e:16x16", 12288),
    Step("spatial_upsampler", "v5e:4x4", 32, "data=8,spatial=2"),
    Step("spatial_upsampler", "v5e:4x4", 32, "data=8,fsdp=2"),
    Step("spatial_upsampler", "v5e:4x8", 32),
    Step("spatial_upsampler", "v5e:8x8", 32, "data=32,spatial=2"),
    Step("spatial_upsampler", "v5e:16x16", 32, "data=32,spatial=8"),
    Step("spatial_upsampler", "v5e:16x16", 32, "data=32,spatial=16", slices=2),
    Step("spatial_upsampler", "v4:4x4x4", 32, "data=16,spatial=4"),
    Step("spatial_upsampler", "v5p:4x8x8", 32, "data=32,spatial=8"),
    Step("colorizer", "v5e:16x16", 224, "data=32,spatial=8"),
)

_TITLES = (
    "network",
    "slice",
    "chips",
    "batch",
    "mesh",
    "memory, GiB",
    "s a step",
    "MFU",
    "collectives, MiB",
    "compiled, s",
)


def table_row(step: Step, devices: int, hbm_gib: float, found: Compiled | None, mfu: float | None) -> list[str]:
    """Returns the cells of a step: `found` is None where it does not fit."""
    slices = f"{step.slices} x " if step.slices > 1 else ""
    cells = [step.network.replace("_", " "), f"{slices}`{step.topology}`", f"{devices}", f"{step.batch_size:,}"]
    if found is None:
        return [*cells, step.mesh, f"more than {hbm_gib:g}", *[""] * 4]
    mesh = " x ".join(f"{axis} {size}" for axis, size in found.mesh.items() if size > 1)
    collectives = ", ".join(f"{kind} {size / 2**20:.0f}" for kind, (_, size) in found.collectives.items())
    secs = "" if found.secs is None else f"{found.secs:.4f}"
    share = "" if mfu is None else f"{100 * mfu:.0f} %"
    return [*cells, mesh, f"{found.used_gib:.2f} of {hbm_gib:g}", secs, share, collectives, f"{found.compile_secs:.0f}"]


def _compiled(step: Step, backend: str) -> list[str]:
    from coltran_jax import partitioning
    from coltran_jax.training.reporting import peak_flops, train_flops

    config = read_config(str(_CONFIGS / f"{step.network}.py"))
    config = dataclasses.replace(config, dtype="bfloat16", batch_size=step.batch_size, backend=backend)
    devices, hbm_gib = topology_devices(step.topology, step.slices)
    result = compile_or_none(config, devices, partitioning.mesh_from_text(step.mesh), hbm_gib)
    found, peak, mfu = result and result[0], peak_flops(devices[0].device_kind), None
    if found and found.secs and peak:
        mfu = train_flops(config) / (found.secs * peak * len(devices))
    return table_row(step, len(devices), hbm_gib, found, mfu)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_for("python -m launch.scaling", __doc__)
    parser.add_argument("--networks", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED), help="(all)")
    topologies = list(dict.fromkeys(step.topology for step in STEPS))
    parser.add_argument("--topologies", nargs="+", choices=topologies, default=topologies, help="(all)")
    parser.add_argument("--backend", choices=("xla", "pallas"), default="pallas", help="(pallas)")
    return parser.parse_args(argv)


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Prints the table, a line when a step is compiled; returns the exit status."""
    args = parse_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"
    steps = [step for step in STEPS if step.network in args.networks and step.topology in args.topologies]
    if not steps:
        raise UsageError("none of the table's steps is of these networks on these topologies")
    # Without the compiler, before the table begins.
    topology_devices(steps[0].topology, steps[0].slices)
    rows = (_compiled(step, args.backend) for step in steps)
    for cells in itertools.chain((_TITLES, ["---"] * len(_TITLES)), rows):
        print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
