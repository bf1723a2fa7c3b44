"""Command line: Markdown tables of what the compilers of accelerators say of the paper's networks, for the documents.

`training`: steps on TPU slices - the paper's batches on sixteen chips of each generation; as many images a chip on more
chips (weak scaling); the same batch on more chips (strong scaling), where images are cut along the mesh's spatial axis.
`sampling`: 512 images on TPU slices. `gpu_training` and `gpu_sampling`: steps, and the decoders' loops, on one GPU.
`launch.compile` tells more of one program. Kernels of Pallas count as long as their arithmetic takes at the device's
peak rate. Compiling a program takes a quarter of a minute to three minutes.
"""

import argparse
import dataclasses
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from coltran_jax.cli.configuration import read_config
from coltran_jax.cli.shared import failing_in_one_line, parser_for
from coltran_jax.errors import UsageError
from coltran_jax.networks.chain import PUBLISHED
from launch import account
from launch.compile import Compiled, chip_of, compile_or_none, compile_sampling, compile_step, topology_devices


class Program(NamedTuple):
    """A training step, or sampling.

    Attributes:
        network: whose configuration in `configs/` has the paper's model.
        topology: of a slice, or a GPU.
        batch_size: on all devices.
        backend: of its layers.
        mesh: as `--mesh` takes it.
        slices: how many there are.
        remat: of a step.
        decoder: of sampling; None for a step.
    """

    network: str
    topology: str
    batch_size: int
    backend: str = "pallas"
    mesh: str = ""
    slices: int = 1
    remat: str = "none"
    decoder: str | None = None


class Found(NamedTuple):
    """A program and its compiler's report.

    Attributes:
        compiled: the report; None where the program does not fit.
        text: of the compiled program.
        config: of the run.
        devices: as JAX names them.
        hbm_gib: memory of each.
    """

    compiled: Compiled | None
    text: str
    config: Any
    devices: list[Any]
    hbm_gib: float


class Table(NamedTuple):
    """A table.

    Attributes:
        programs: a row each.
        titles: of the columns.
        cells: of a row.
        summary: cells of a row that sums up others, by program; None for none.
    """

    programs: tuple[Program, ...]
    titles: tuple[str, ...]
    cells: Callable[[Program, Found], list[str]]
    summary: Callable[[dict[Program, Found]], list[str] | None] = lambda found: None


_CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
# The paper's batches and numbers of steps (Section 5.1).
_BATCHES = {"colorizer": 224, "color_upsampler": 768, "spatial_upsampler": 32}
_STEPS = {"colorizer": 600_000, "color_upsampler": 450_000, "spatial_upsampler": 300_000}
# Of ImageNet's training split.
_IMAGES = 1_281_167

_TRAINING = (
    *(Program(network, "v5e:4x4", batch, "xla") for network, batch in _BATCHES.items()),
    *(
        Program(network, slice_, batch)
        for slice_ in ("v5e:4x4", "v6e:4x4", "v5p:2x2x4")
        for network, batch in _BATCHES.items()
    ),
    Program("colorizer", "v5e:16x16", 3584),
    Program("colorizer", "v5e:16x16", 7168, slices=2),
    Program("color_upsampler", "v5e:16x16", 12288),
    Program("spatial_upsampler", "v5e:4x4", 32, mesh="data=8,spatial=2"),
    Program("spatial_upsampler", "v5e:4x4", 32, mesh="data=8,fsdp=2"),
    Program("spatial_upsampler", "v5e:4x8", 32),
    Program("spatial_upsampler", "v5e:8x8", 32, mesh="data=32,spatial=2"),
    Program("spatial_upsampler", "v5e:16x16", 32, mesh="data=32,spatial=8"),
    Program("spatial_upsampler", "v5e:16x16", 32, mesh="data=32,spatial=16", slices=2),
    Program("spatial_upsampler", "v4:4x4x4", 32, mesh="data=16,spatial=4"),
    Program("spatial_upsampler", "v5p:4x8x8", 32, mesh="data=32,spatial=8"),
    Program("colorizer", "v5e:16x16", 224, mesh="data=32,spatial=8"),
)
_SAMPLING = tuple(
    Program(network, slice_, 512, backend, decoder="sequential")
    for slice_ in ("v5e:4x4", "v6e:4x4")
    for backend in ("xla", "pallas")
    for network in _BATCHES
)
_GPU_TRAINING = (
    Program("colorizer", "h100", 64, "xla"),
    Program("color_upsampler", "h100", 64, "xla"),
    *(Program("spatial_upsampler", "h100", 8, "xla", remat=remat) for remat in ("none", "products", "block")),
)
_GPU_SAMPLING = tuple(
    Program("colorizer", "h100", batch, "xla", decoder=decoder)
    for batch in (1, 64, 256)
    for decoder in ("sequential", "fixed_point")
)


def training_cells(program: Program, found: Found) -> list[str]:
    """Returns the cells of a training step on TPUs."""
    cells = [*_names(program), f"{len(found.devices)}", f"{program.batch_size:,}"]
    if found.compiled is None:
        return [*cells, program.mesh, f"more than {found.hbm_gib:g}", *[""] * 5]
    compiled = found.compiled
    mesh = " x ".join(f"{axis} {size}" for axis, size in compiled.mesh.items() if size > 1)
    collectives = ", ".join(f"{kind} {size / 2**20:.0f}" for kind, (_, size) in compiled.collectives.items())
    secs = chip_hours = share = ""
    if compiled.secs is not None:
        secs = f"{compiled.secs:.4f}"
        if program.batch_size == _BATCHES[program.network]:
            chip_hours = f"{_STEPS[program.network] * compiled.secs * len(found.devices) / 3600:,.0f}"
        share = _mfu(program, found, compiled.secs)
    memory = f"{compiled.used_gib:.2f} of {found.hbm_gib:g}"
    return [*cells, mesh, memory, secs, share, chip_hours, collectives, f"{compiled.compile_secs:.0f}"]


def sampling_cells(program: Program, found: Found) -> list[str]:
    """Returns the cells of sampling on TPUs."""
    if found.compiled is None:
        return [*_names(program), f"more than {found.hbm_gib:g}", *[""] * 5]
    compiled = found.compiled
    memory = f"{compiled.used_gib:.2f} of {found.hbm_gib:g}"
    collectives = ", ".join(compiled.collectives) or "none"
    secs = [f"{secs:.3f}" for secs in (compiled.estimated_secs, compiled.secs)]
    return [*_names(program), memory, collectives, *secs, f"{program.batch_size / compiled.secs:,.0f}", ""]


def sampling_summary(found: dict[Program, Found]) -> list[str] | None:
    """Returns the cells of all three networks on a slice; None where one is missing."""
    programs = list(found)
    compiled = [each.compiled for each in found.values() if each.compiled]
    if len(compiled) < len(_BATCHES):
        return None
    xla, secs = sum(each.estimated_secs for each in compiled), sum(each.secs for each in compiled)
    rate = programs[0].batch_size / secs
    chip_hours = _IMAGES / rate * len(found[programs[0]].devices) / 3600
    names = ["all three", *_names(programs[0])[1:]]
    return [*names, "", "", f"{xla:.3f}", f"{secs:.3f}", f"{rate:,.0f}", f"{chip_hours:,.0f}"]


def gpu_training_cells(program: Program, found: Found) -> list[str]:
    """Returns the cells of a training step on a GPU, whose compiler estimates no times: rooflines at best."""
    cells = [program.network.replace("_", " "), program.topology, f"{program.batch_size}", program.remat]
    if found.compiled is None:
        return [*cells, f"more than {found.hbm_gib:.1f}", *[""] * 4]
    kernels = account.kernels(found.text, _chip(program, found))
    moved, secs = (sum(getattr(kernel, name) for kernel in kernels) for name in ("bytes", "roofline_secs"))
    rest = [f"{found.compiled.loops.kernels:,}", f"{moved / 1e12:.2f}", f"{1e3 * secs:.0f}", _mfu(program, found, secs)]
    return [*cells, f"{found.compiled.used_gib:.1f}", *rest]


def gpu_sampling_cells(program: Program, found: Found) -> list[str]:
    """Returns the cells of the decoders' loops on a GPU: the kernels that they start."""
    cells = [program.topology, f"{program.batch_size}", program.decoder.replace("_", " ")]
    if found.compiled is None:
        return [*cells, "", "", f"more than {found.hbm_gib:.1f}"]
    rows = max(found.compiled.loops.inner, key=lambda loop: loop.kernels)
    pixels = max(rows.inner, key=lambda loop: loop.kernels)
    return [*cells, f"{rows.kernels}", f"{pixels.kernels}", f"{found.compiled.used_gib:.2f}"]


TABLES = {
    "training": Table(
        _TRAINING,
        (
            *("network", "slice", "kernels", "chips", "batch", "mesh", "memory, GiB", "s a step", "MFU", "chip-hours"),
            *("collectives, MiB", "compiled, s"),
        ),
        training_cells,
    ),
    "sampling": Table(
        _SAMPLING,
        (
            *("network", "slice", "kernels", "memory, GiB", "collectives", "XLA's part, s", "and kernels, s"),
            *("images/s", "chip-hours for ImageNet"),
        ),
        sampling_cells,
        sampling_summary,
    ),
    "gpu_training": Table(
        _GPU_TRAINING,
        ("network", "GPU", "batch", "`remat`", "memory, GiB", "kernels", "TB", "rooflines, ms", "MFU at most"),
        gpu_training_cells,
    ),
    "gpu_sampling": Table(
        _GPU_SAMPLING,
        ("GPU", "images", "decoder", "kernels a row", "a pixel or iteration", "memory, GiB"),
        gpu_sampling_cells,
    ),
}


def _names(program: Program) -> list[str]:
    slices = f"{program.slices} x " if program.slices > 1 else ""
    return [program.network.replace("_", " "), f"{slices}`{program.topology}`", program.backend]


def _chip(program: Program, found: Found) -> account.Chip:
    return chip_of(program.topology, found.devices[0], found.hbm_gib)


def _mfu(program: Program, found: Found, secs: float) -> str:
    from coltran_jax.training.reporting import train_flops

    most = secs * _chip(program, found).flops_per_sec * len(found.devices)
    return f"{100 * train_flops(found.config) / most:.0f} %"


def _compile(program: Program) -> Found:
    from coltran_jax import partitioning

    config = dataclasses.replace(
        read_config(str(_CONFIGS / f"{program.network}.py")),
        dtype="bfloat16",
        batch_size=program.batch_size,
        backend=program.backend,
        remat=program.remat,
    )
    devices, hbm_gib = topology_devices(program.topology, program.slices)
    if program.decoder:
        result = compile_or_none(compile_sampling, config, devices, hbm_gib, program.decoder)
    else:
        mesh_sizes = partitioning.mesh_from_text(program.mesh)
        result = compile_or_none(compile_step, config, devices, mesh_sizes, hbm_gib)
    return Found(*(result or (None, "")), config, devices, hbm_gib)


def _rows(table: Table, programs: list[Program]) -> Iterator[list[str]]:
    for _, together in itertools.groupby(programs, key=lambda program: (program.topology, program.backend)):
        found = {}
        for program in together:
            found[program] = _compile(program)
            yield table.cells(program, found[program])
        summary = table.summary(found)
        if summary:
            yield summary


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_for("python -m launch.tables", __doc__)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--networks", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED), help="(all)")
    programs = [program for table in TABLES.values() for program in table.programs]
    topologies = list(dict.fromkeys(program.topology for program in programs))
    parser.add_argument("--topologies", nargs="+", choices=topologies, default=topologies, help="(all)")
    parser.add_argument("--backends", nargs="+", choices=("xla", "pallas"), default=("xla", "pallas"), help="(both)")
    return parser.parse_args(argv)


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Prints a table, a line when a program is compiled; returns the exit status."""
    args = parse_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"
    table = TABLES[args.table]
    programs = [
        program
        for program in table.programs
        if program.network in args.networks and program.topology in args.topologies and program.backend in args.backends
    ]
    if not programs:
        raise UsageError("none of the table's programs is of these networks, topologies and backends")
    # Without the compiler, before the table begins.
    topology_devices(programs[0].topology, programs[0].slices)
    for cells in itertools.chain((table.titles, ["---"] * len(table.titles)), _rows(table, programs)):
        print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
