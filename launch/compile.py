"""Command line: compiles the training step of a configuration, or sampling, for accelerators that are not at hand.

The real compiler of TPU pod slices (libtpu from PyPI) or of GPUs (XLA's plugin for CUDA) says how much memory a device
needs, how many operations a step takes, what crosses between devices, how many kernels a loop starts at each iteration
and, of TPUs, how long it thinks that all this takes.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from coltran_jax.cli.configuration import add_config, parse_with_config, read_config
from coltran_jax.cli.shared import failing_in_one_line, parser_for, positive
from coltran_jax.errors import UsageError
from coltran_jax.files import check_writable
from launch import account, explain, hlo


class Tpu(NamedTuple):
    """A generation of TPUs, as published.

    Attributes:
        hbm_gib: memory of a chip. Where a chip is two devices, each has half of it.
        hbm_gb_per_sec: rate of that memory.
        clock_ghz: of the cores, from which the compiler's cycles become seconds: the peak rate over what the matrix
            units do in a cycle.
    """

    hbm_gib: int
    hbm_gb_per_sec: int
    clock_ghz: float


TPUS = {
    "v2": Tpu(16, 700, 0.7),
    "v3": Tpu(32, 900, 0.94),
    "v4": Tpu(32, 1228, 1.05),
    "v5e": Tpu(16, 819, 1.5),
    "v5p": Tpu(95, 2765, 1.75),
    "v6e": Tpu(32, 1640, 1.75),
}

# What XLA wants to know of a GPU: memory in bytes and in bytes a second, and figures that NVIDIA publishes of its chip.
GPUS = {"h100": (84929347584, 3352320000000), "h200": (150754820096, 4917504000000)}
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 minor: 0 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
runtime_version {{ major: 13 minor: 0 patch: 0 }}
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "NVIDIA {name}"
"""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's report of a step, per device.

    Attributes:
        batch_size: of the whole step.
        mesh: sizes of its axes.
        arguments_gib, temporaries_gib: memory; the state, which is donated, counts once.
        hbm_gib: memory there is.
        flops: of one step; None where the compiler does not say.
        collectives: kind -> [number, bytes of their results].
        compile_secs: to compile.
        estimated_secs: how long one run takes by the compiler's own estimate, which was not checked on a device; TPUs
            only. Kernels of Pallas are not in it.
        pallas_secs: how long those take at least, at the device's peak rate.
        loops: of the program; see `launch.hlo.Loop`.
    """

    batch_size: int
    mesh: dict[str, int]
    arguments_gib: float
    temporaries_gib: float
    hbm_gib: float
    flops: float | None
    collectives: dict[str, tuple[int, int]]
    compile_secs: float
    estimated_secs: float | None
    pallas_secs: float | None
    loops: hlo.Loop

    @property
    def secs(self) -> float | None:
        """Seconds of one run with the kernels of Pallas; None where nothing estimates them."""
        return None if self.estimated_secs is None else self.estimated_secs + (self.pallas_secs or 0)

    @property
    def used_gib(self) -> float:
        """Memory that the step takes."""
        return self.arguments_gib + self.temporaries_gib

    @property
    def fits(self) -> bool:
        """Returns whether the step fits in the device's memory."""
        return self.used_gib <= self.hbm_gib


def topology_devices(name: str, slices: int = 1) -> tuple[list[Any], float]:
    """Devices of a topology like "v5e:4x4" or "h100:8", and the memory of each in GiB.

    Args:
        name: of the topology.
        slices: how many of a TPU's there are, joined by the network of the data centre.

    Raises:
        UsageError: no such topology, or no compiler for it.
    """
    generation, _, shape = name.partition(":")
    if generation in GPUS and re.fullmatch(r"\d*", shape):
        if slices > 1:
            raise UsageError(f"--slices {slices}: expected a TPU's topology, not {name}")
        return _gpus(generation, int(shape or 1))
    if generation not in TPUS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise UsageError(
            f"topology {name!r}: expected GENERATION:AxB or AxBxC, of {', '.join(TPUS)}, or GPU:N, of {', '.join(GPUS)}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError("compiling for TPUs takes libtpu: pip install 'jax[tpu]'")
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # Nothing here uses a chip, so that other processes need not wait.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    from jax.experimental import topologies

    # The two cores of a v4 chip are one device, as JAX finds them on a real one.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if generation == "v4" else {}
    if slices > 1:
        options["num_slices"] = slices
    try:
        devices = topologies.get_topology_desc(name, "tpu", **options).devices
    except Exception as error:
        raise UsageError(f"topology {name!r}: unknown to libtpu ({str(error).splitlines()[0]})") from None
    chips = slices * math.prod(int(side) for side in shape.split("x"))
    return list(devices), TPUS[generation].hbm_gib * chips / len(devices)


def has_gpu_compiler() -> bool:
    """Returns whether XLA's plugin for CUDA is installed."""
    return all(importlib.util.find_spec(name) for name in ("jax_plugins", "jax_plugins.xla_cuda13"))


def _gpus(kind: str, count: int) -> tuple[list[Any], float]:
    """Returns the GPUs of one host; see `topology_devices`."""
    if not has_gpu_compiler():
        raise UsageError("compiling for GPUs takes XLA's plugin for CUDA: pip install 'jax[cuda13]'")
    from jax.experimental import topologies

    memory, bandwidth = GPUS[kind]
    description = _HOPPER.format(memory=memory, bandwidth=bandwidth, name=kind.upper())
    topology = topologies.get_topology_desc(kind, "cuda", target_config=description, topology=f"1x1x{count}")
    return list(topology.devices), memory / 2**30


def compile_step(config: Any, devices: list[Any], mesh_sizes: dict[str, int], hbm_gib: float) -> tuple[Compiled, str]:
    """Compiles one training step; returns what the compiler says, and the program's text.

    Raises:
        ValueError: a mesh or a batch that does not fit the devices.
    """
    import jax
    import jax.numpy as jnp

    from coltran_jax import partitioning
    from coltran_jax.training.loop import programs

    mesh = partitioning.make_mesh(mesh_sizes, devices)
    compiled = programs(dataclasses.replace(config, eval_batch_size=config.batch_size), mesh)
    sharding = partitioning.batch_sharding(mesh)
    size = config.resolution
    batch = {
        "images": jax.ShapeDtypeStruct((config.batch_size, size, size, 3), jnp.uint8, sharding=sharding),
        "mask": jax.ShapeDtypeStruct((config.batch_size,), jnp.float32, sharding=sharding),
    }
    lowered = compiled.train.lower(compiled.abstract, batch)
    return _described(lowered, config.batch_size, dict(mesh.shape), devices[0], hbm_gib)


def compile_sampling(
    config: Any, devices: list[Any], hbm_gib: float, decoder: str = "sequential"
) -> tuple[Compiled, str]:
    """Compiles what `colorize` does with the network, over all devices: as `compile_step`.

    Raises:
        ValueError: a batch that is no multiple of the devices.
    """
    import functools

    import jax
    import jax.numpy as jnp

    from coltran_jax import partitioning
    from coltran_jax.inference import WINDOW, chunk_of
    from coltran_jax.networks.chain import COLORIZER
    from coltran_jax.networks.registry import build, initialize
    from coltran_jax.networks.upsampler import upsample
    from coltran_jax.nn.compute import compute_for
    from coltran_jax.sampling import noise as noises
    from coltran_jax.sampling import sampler

    batch = config.batch_size
    if batch % len(devices):
        raise UsageError(f"a batch of {batch}: expected a multiple of the {len(devices)} devices")
    model = build(config.model, compute_for(devices[0].platform, config.dtype, config.backend))
    shape = (batch, *config.model.resolution)
    params = jax.eval_shape(functools.partial(initialize, config.model), jax.random.key(0))
    gray = jax.ShapeDtypeStruct((*shape, 1), jnp.uint8)
    if config.network == COLORIZER:

        def colorize(params, gray, noise):
            z = sampler.encode(model, params, gray)
            return sampler.sample(model, params, z, noise, decoder=decoder, window=WINDOW["accelerator"])

        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
        noise = noises.SeededNoise(keys, jax.ShapeDtypeStruct((batch, 1), jnp.int32))
        function, args = colorize, (params, gray, noise)
    else:
        chunk = chunk_of(config.network, "accelerator")
        function = functools.partial(upsample, model, chunk=chunk)
        args = (params, gray, jax.ShapeDtypeStruct((*shape, 3), jnp.uint8))
    lowered = jax.jit(partitioning.on_each_device(function, devices)).lower(*args)
    return _described(lowered, batch, {"data": len(devices)}, devices[0], hbm_gib)


def _described(
    lowered: Any, batch_size: int, mesh: dict[str, int], device: Any, hbm_gib: float
) -> tuple[Compiled, str]:
    """Compiles; what the compiler says, and the program's text."""
    started = time.perf_counter()
    # On a real GPU XLA tries several kernels for each product and keeps the fastest.
    program = lowered.compile({"xla_gpu_autotune_level": "0"} if device.platform in ("cuda", "gpu") else None)
    secs = time.perf_counter() - started
    from coltran_jax.training.reporting import peak_flops

    memory, text = program.memory_analysis(), program.as_text()
    cost = program.cost_analysis() or {}
    loops = hlo.program(text)
    tpu = TPUS.get(_generation(device))
    result = Compiled(
        batch_size,
        mesh,
        memory.argument_size_in_bytes / 2**30,
        memory.temp_size_in_bytes / 2**30,
        hbm_gib,
        cost.get("flops"),
        hlo.collectives(text),
        secs,
        loops.cycles / (tpu.clock_ghz * 1e9) if tpu and loops.cycles else None,
        loops.pallas_flops / (peak_flops(device.device_kind) or math.inf),
        loops,
    )
    return result, text


def chip_of(name: str, device: Any, hbm_gib: float) -> account.Chip:
    """The published rates of a topology's devices, of which each has so much of a chip's memory."""
    from coltran_jax.training.reporting import peak_flops

    generation = name.partition(":")[0]
    if generation in GPUS:
        return account.Chip(peak_flops(f"NVIDIA {generation.upper()}") or math.inf, GPUS[generation][1], None)
    tpu, flops = TPUS[generation], peak_flops(device.device_kind) or math.inf
    return account.Chip(flops, hbm_gib / tpu.hbm_gib * 1e9 * tpu.hbm_gb_per_sec, 1e9 * tpu.clock_ghz)


def _generation(device: Any) -> str:
    """Returns a TPU's name in `TPUS`."""
    kind = device.device_kind.lower().removeprefix("tpu ").replace(" ", "")
    return {"v5lite": "v5e", "v5": "v5p", "v6lite": "v6e"}.get(kind, kind)


def compile_or_none(function: Callable[..., tuple[Compiled, str]], *args: Any) -> tuple[Compiled, str] | None:
    """Applies `compile_step` or `compile_sampling`; None where the compiler says that memory does not suffice."""
    import jax

    try:
        result = function(*args)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error) or "Ran out of memory" in str(error):
            return None
        raise
    return result if result[0].fits else None


def largest_batch(config, devices, mesh_sizes, hbm_gib) -> tuple[Compiled, str]:
    """The largest batch that fits, to within a sixteenth, over multiples of the mesh's share.

    Memory grows almost in proportion to the batch, and compiling takes minutes: each batch that fits foretells the
    largest; where that is wrong, bisection.

    Raises:
        UsageError: not even one image a share fits.
    """
    from coltran_jax import partitioning

    shape = partitioning.mesh_shape(mesh_sizes, len(devices))
    unit = partitioning.batch_parts(shape) * config.optimizer.accumulation_steps

    low, high, count = 0, math.inf, 1
    best, used = None, {}
    while high - low > max(1, low // 16):
        batch_size = count * unit
        print(f"batch {batch_size}: ", end="", file=sys.stderr, flush=True)
        attempt = dataclasses.replace(config, batch_size=batch_size)
        found = compile_or_none(compile_step, attempt, devices, mesh_sizes, hbm_gib)
        if found is None:
            high, guess = count, (low + count) // 2
            print("does not fit", file=sys.stderr)
        else:
            low, best = count, found
            used[count] = found[0].used_gib
            # Where memory is short the compiler saves some, and a straight line foretells too much.
            guess = min(_foretold(used, hbm_gib), 2 * count * hbm_gib / used[count], 16 * count)
            print(f"fits, {used[count]:.2f} of {hbm_gib} GiB, {found[0].compile_secs:.0f} s", file=sys.stderr)
        count = int(min(max(guess, low + max(1, low // 16)), high - 1))
    if best is None:
        raise UsageError(f"not even a batch of {unit} fits; give the mesh a larger spatial or fsdp axis, or remat")
    return best


def _foretold(used: dict[int, float], hbm_gib: float) -> float:
    """The largest count that fits if memory is a straight line: {count: GiB} of at least one count."""
    counts = sorted(used)[-2:]
    if len(counts) == 1:
        return math.inf
    (low, high), (low_gib, high_gib) = counts, (used[count] for count in counts)
    slope = (high_gib - low_gib) / (high - low)
    return high + (hbm_gib - high_gib) / slope if slope > 0 else math.inf


def print_report(name: str, result: Compiled) -> None:
    """A few lines for people and one of JSON."""
    print(f"{name}: batch {result.batch_size}, mesh {result.mesh}, compiled in {result.compile_secs:.0f} s")
    print(
        f"memory a device: {result.used_gib:.2f} of {result.hbm_gib} GiB (arguments {result.arguments_gib:.2f}, "
        f"temporaries {result.temporaries_gib:.2f})"
    )
    if result.flops:
        print(f"{result.flops / 1e12:.2f} TFLOP a device")
    if result.estimated_secs:
        print(f"{result.estimated_secs:.4g} s by the compiler's own estimate; nothing was measured")
    if result.loops.pallas_flops:
        print(f"{result.secs:.4g} s with Pallas's kernels, which that leaves out, at the device's peak rate")
    print_loops(result.loops)
    for kind, (number, size) in result.collectives.items():
        print(f"  {kind:<20} {number:>5}  {size / 2**20:>10.1f} MiB")
    print(json.dumps({"topology": name, **dataclasses.asdict(result), "fits": result.fits}))


def print_loops(loop: hlo.Loop, depth: int = 0) -> None:
    """A line a loop that starts more than a handful of kernels."""
    iterations = "as many iterations as the data decide" if loop.iterations is None else f"{loop.iterations} iterations"
    what = f"a loop of {iterations}" if depth else "the program"
    if not depth or loop.kernels > 5:
        pallas = f", {loop.pallas} of them Pallas's" if loop.pallas else ""
        print(f"{'  ' * depth}{what}: {loop.kernels} kernels{' an iteration' if depth else ''}{pallas}")
        for inner in loop.inner:
            print_loops(inner, depth + 1)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_for("python -m launch.compile", __doc__)
    add_config(parser)
    parser.add_argument("--topology", required=True, help="such as v5e:4x4, v4:4x4x4, v2:4x4, h100 or h100:8")
    parser.add_argument(
        "--slices", type=positive(int), default=1, metavar="N", help="how many of a TPU's there are (1)"
    )
    parser.add_argument("--mesh", help="such as data=8,spatial=2; what is left goes to data")
    parser.add_argument("--batch_size", type=positive(int), metavar="N", help="instead of the configuration's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="(bfloat16)")
    parser.add_argument("--fit", action="store_true", help="look for the largest batch that fits, to within 1/16")
    parser.add_argument(
        "--sample", action="store_true", help="what colorize does with the network, images shared out over all devices"
    )
    parser.add_argument(
        "--decoder", choices=("sequential", "fixed_point"), default="sequential", help="with --sample (sequential)"
    )
    parser.add_argument(
        "--explain",
        metavar="FOLDER",
        type=pathlib.Path,
        help="print where the time goes, and write program.txt, kernels.json and flame.png there",
    )
    args, overrides = parse_with_config(parser, sys.argv[1:] if argv is None else argv)
    args.config = read_config(args.config, overrides)
    return args


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Compiles; returns the exit status, 1 where the step does not fit."""
    args = parse_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"
    config = dataclasses.replace(args.config, dtype=args.dtype, batch_size=args.batch_size or args.config.batch_size)
    from coltran_jax import partitioning

    sizes = partitioning.mesh_from_text(args.mesh)
    if args.sample and (args.fit or args.mesh):
        raise UsageError("--sample shards images over all devices: it goes without --mesh and --fit")
    if args.explain:
        check_writable(args.explain)
    devices, hbm_gib = topology_devices(args.topology, args.slices)
    if args.sample:
        result, text = compile_sampling(config, devices, hbm_gib, args.decoder)
    elif args.fit:
        result, text = largest_batch(config, devices, sizes, hbm_gib)
    else:
        result, text = compile_step(config, devices, sizes, hbm_gib)
    print_report(args.topology, result)
    if args.explain:
        title = f"{config.network}, batch {result.batch_size}, {args.topology}, {args.dtype}, remat {config.remat}"
        explain.explain(text, chip_of(args.topology, devices[0], hbm_gib), args.explain, title)
    return 0 if result.fits else 1


if __name__ == "__main__":
    sys.exit(main())
