"""Command line: how fast and in how much memory, measured here and now.

`sample` times the three networks, each compiled ahead, and tells how near they are to what the device could do at best.
Weights and gray images are random: neither speed nor memory depends on their values, but for the decoder
"fixed_point"; give it a bundle and images. `train` times the training step of a configuration, `data` the input
pipeline alone, `colorize` the whole command on files. A table for people, and one JSON line for programs.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax import config as configs
from coltran_jax.checkpoints.bundles import Bundle, load_bundle, save_bundle
from coltran_jax.cli.configuration import add_config, parse_with_config, read_config
from coltran_jax.cli.shared import (
    add_compute_options,
    add_encoding_options,
    compute_options,
    failing_in_one_line,
    local_path,
    parser_for,
    positive,
    use_huge_pages,
)
from coltran_jax.errors import UsageError
from coltran_jax.evaluation.tables import text_table
from coltran_jax.images import arrays
from coltran_jax.images.encoding import write_image
from coltran_jax.images.files import find_images, read_rgb
from coltran_jax.inference import COLOR_CHUNK, SPATIAL_CHUNK, WINDOW, device_kind
from coltran_jax.networks.chain import PUBLISHED
from coltran_jax.networks.registry import build, initialize
from coltran_jax.networks.upsampler import upsample
from coltran_jax.nn.colorizer import Colorizer
from coltran_jax.nn.parameters import Parameters
from coltran_jax.partitioning import image_options
from coltran_jax.sampling import noise as noises
from coltran_jax.sampling import sampler
from coltran_jax.sampling.options import DECODERS
from coltran_jax.stages import usable_cores
from launch import control, roofline
from launch.throughput import benchmark_colorize

# Width of the networks (hidden and MLP) and number of heads; layers are the paper's.
SIZES = {"paper": (512, 4), "small": (128, 4), "tiny": (16, 2)}


def network_configs(size: str) -> dict[str, configs.NetworkConfig]:
    """The three networks at the real geometry and one of `SIZES`."""
    width, heads = SIZES[size]
    shape = {"hidden_size": width, "ff_size": width, "num_heads": heads}
    return {
        "colorizer": configs.ColorizerConfig(
            hidden_size=width, encoder=configs.EncoderConfig(**shape), decoder=configs.DecoderConfig(**shape)
        ),
        "color_upsampler": configs.ColorUpsamplerConfig(**shape),
        "spatial_upsampler": configs.SpatialUpsamplerConfig(**shape),
    }


def random_bundle(networks: dict[str, configs.NetworkConfig]) -> Bundle:
    """Networks with their first weights."""
    params = {name: jax.jit(functools.partial(initialize, c))(jax.random.key(0)) for name, c in networks.items()}
    return Bundle(networks, params)


@dataclasses.dataclass(frozen=True)
class Timing:
    """The times of one stage.

    Attributes:
        stage: its name.
        compile_secs: from tracing to a program that can run.
        ms_per_image: the fastest run, divided by the batch.
        images_per_sec: its inverse.
        floor_arithmetic_ms, floor_memory_ms: an image, at best; see `launch.roofline`. None for all stages together.
    """

    stage: str
    compile_secs: float
    ms_per_image: float
    images_per_sec: float
    floor_arithmetic_ms: float | None = None
    floor_memory_ms: float | None = None

    def with_roofline(self, work: roofline.Work, rates: roofline.Rates, batch: int) -> "Timing":
        """The same, and how fast it could be."""
        arithmetic, memory = (1000 * secs / batch for secs in work.roofline_secs(rates))
        return dataclasses.replace(self, floor_arithmetic_ms=arithmetic, floor_memory_ms=memory)


def measure(
    stage: str, function: Callable[..., Any], args: tuple, batch: int, repeats: int, options: dict[str, str]
) -> tuple[Timing, Any]:
    """Compiles a function with options and runs it 1 + `repeats` times; returns the timing and the last result."""
    started = time.perf_counter()
    compiled = jax.jit(function, compiler_options=options).lower(*args).compile()
    compile_secs = time.perf_counter() - started
    result = jax.block_until_ready(compiled(*args))
    fastest = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        result = jax.block_until_ready(compiled(*args))
        fastest = min(fastest, time.perf_counter() - started)
    return Timing(stage, compile_secs, 1000 * fastest / batch, batch / fastest), result


def naive_secs_per_image(model: Colorizer, params: Parameters, gray: jax.Array, z: jax.Array, rows: int) -> float:
    """Seconds a batch by the release's algorithm, extrapolated from `rows` rows.

    It recomputes the outer context of the whole image for every row, and the whole row for every pixel.
    """

    @jax.jit
    def outer(params, coarse, z):
        return model.apply({"params": params}, coarse, z, method=lambda m, c, z: m.outer_decoder(m.embed(c), z))

    @jax.jit
    def inner(params, row, coarse, z, context, norms):
        def logits(m, coarse, z, context):
            return m.decode_row(coarse, *m.begin_row(row, z, context), norms)

        return model.apply({"params": params}, coarse, z, context, method=logits)

    norms = model.apply({"params": params}, z, False, method="begin")[1]
    height, width = z.shape[1:3]
    coarse = np.zeros((gray.shape[0], height, width), np.int32)

    def run(count: int) -> float:
        started = time.perf_counter()
        for row in range(count):
            context = outer(params, coarse, z)[:, row : row + 1]
            for column in range(width):
                logits = inner(params, row, coarse[:, row : row + 1], z[:, row : row + 1], context, norms)
                coarse[:, row, column] = np.asarray(logits[:, 0, column].argmax(-1))
        return time.perf_counter() - started

    run(1)
    return run(rows) / rows * height


def benchmark_sampling(args: argparse.Namespace) -> dict[str, Any]:
    """Times the stages; returns what the JSON line says."""
    compute, batch, kind = compute_options(args), args.batch_size, device_kind(jax.devices()[0])
    compute.check_platform(jax.devices()[0].platform)
    bundle = load_bundle(args.weights) if args.weights else None
    network = bundle.configs if bundle else network_configs(args.size)
    images = read_images(args.images, batch) if args.images else None
    rng = np.random.default_rng(0)
    stages = args.stages or list(PUBLISHED)

    def prepared(name: str):
        params = bundle and jax.device_put(bundle.params[name])
        params = params or jax.jit(functools.partial(initialize, network[name]))(jax.random.key(0))
        shape = (batch, *network[name].resolution)
        gray = rng.integers(0, 256, (*shape, 1), np.uint8)
        if images:
            gray = arrays.gray_from_rgb(np.stack([arrays.area_resize(x, *shape[1:]) for x in images]))
        return (
            build(network[name], compute),
            jax.block_until_ready(params),
            jnp.asarray(gray),
            shape,
        )

    timings, works, naive, iterations = [], {}, None, None
    options = image_options(jax.devices()[0].platform)
    if "colorizer" in stages:
        model, params, gray, _ = prepared("colorizer")
        encode = functools.partial(sampler.encode, model)
        timing, z = measure("gray encoder", encode, (params, gray), batch, args.repeats, options)
        noise = noises.SeededNoise(noises.image_keys(0, np.asarray(gray)), jnp.zeros((batch, 1), jnp.int32))
        draw = functools.partial(sampler.sample, model, decoder=args.decoder, window=args.window or WINDOW[kind])
        drawn, result = measure("decoders", draw, (params, z, noise, jnp.float32(1)), batch, args.repeats, {})
        timings += [timing, drawn]
        num_iterations = np.asarray(result.num_iterations)
        passes = int(num_iterations.max((0, 1)).sum())
        works |= roofline.colorizer_work(network["colorizer"], batch, compute.dtype.itemsize, passes)
        # Of an image's row, and of the slowest image's, for which the batch waits.
        iterations = {
            "num_iterations": float(num_iterations.mean()),
            "num_iterations_of_batch": float(num_iterations.max((0, 1)).mean()),
        }
        if args.naive_rows:
            secs = naive_secs_per_image(model, params, gray, z, args.naive_rows) / batch
            naive = {"naive_secs_per_image": secs, "naive_over_ours": secs * 1000 / drawn.ms_per_image}
    for name, symbols, chunk in (
        ("color_upsampler", 2**arrays.BITS_PER_CHANNEL, COLOR_CHUNK[kind]),
        ("spatial_upsampler", 256, SPATIAL_CHUNK[kind]),
    ):
        if name not in stages:
            continue
        model, params, gray, shape = prepared(name)
        values = jnp.asarray(rng.integers(0, symbols, (*shape, 3), np.uint8))
        function = functools.partial(upsample, model, chunk=args.chunk or chunk)
        timing, _ = measure(name.replace("_", " "), function, (params, gray, values), batch, args.repeats, options)
        timings.append(timing)
        channels = min(args.chunk or chunk, 3 * batch)
        works[timing.stage] = roofline.upsampler_work(network[name], batch, channels, compute.dtype.itemsize)
    control_costs = {}
    if args.particles:
        gray = prepared("colorizer")[2]
        control_costs = control.costs(
            bundle or random_bundle(network), compute, np.asarray(gray), args.decoder, args.particles, args.repeats
        )
    # Last of all: its large arrays are none of the stages' memory.
    peak, rates = peak_memory_gib(), roofline.measure_rates(compute.dtype, kind)
    timings = [timing.with_roofline(works[timing.stage], rates, batch) for timing in timings]
    total_ms = sum(timing.ms_per_image for timing in timings)
    compile_secs = sum(timing.compile_secs for timing in timings)
    timings.append(Timing("all", compile_secs, total_ms, 1000 / total_ms))
    return {
        "benchmark": "sample",
        "size": str(args.weights or args.size),
        "batch_size": batch,
        "dtype": args.dtype,
        "decoder": args.decoder,
        "backend": args.backend,
        "device": describe_device(),
        **dataclasses.asdict(rates),
        "stages": [dataclasses.asdict(timing) for timing in timings],
        "peak_memory_gib": peak,
        **(iterations or {}),
        **(naive or {}),
        **control_costs,
        **(first_image_secs(bundle or random_bundle(network), args.dtype) if args.first_image else {}),
    }


def read_images(folder: pathlib.Path, count: int) -> list[np.ndarray]:
    """Centre squares of the first images of a folder.

    Raises:
        UsageError: too few.
    """
    found = find_images([folder]).images
    if len(found) < count:
        raise UsageError(f"{folder}: {len(found)} images, expected a batch of {count}")
    return [arrays.center_square(read_rgb(path)) for path, _ in found[:count]]


def first_image_secs(bundle: Bundle, dtype: str) -> dict[str, float]:
    """Times the colorize command from its start to its end for one image, without and with compiled programs kept."""
    secs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        save_bundle(folder / "bundle.safetensors", bundle)
        write_image(folder / "image.png", np.zeros((256, 256, 1), np.uint8))
        command = [sys.executable, "-m", "coltran_jax", "colorize", folder / "image.png", "--output", folder / "out"]
        command += ["--weights", folder / "bundle.safetensors", "--dtype", dtype, "--overwrite"]
        for state in ("cold", "warm"):
            started = time.perf_counter()
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
            subprocess.run(command, check=True, capture_output=True, env=environment)
            secs[f"first_image_{state}_secs"] = time.perf_counter() - started
    return secs


def benchmark_training(args: argparse.Namespace) -> dict[str, Any]:
    """Times the jitted step of a configuration on random images; returns what the JSON line says."""
    from coltran_jax import partitioning
    from coltran_jax.training.loop import fresh_state, programs
    from coltran_jax.training.reporting import peak_flops, train_flops

    batch_size = args.batch_size or args.config.batch_size
    config = dataclasses.replace(args.config, batch_size=batch_size, eval_batch_size=batch_size, dtype=args.dtype)
    mesh = partitioning.make_mesh(partitioning.mesh_from_text(args.mesh))
    compiled = programs(config, mesh)
    state = fresh_state(config, compiled)
    side = config.resolution
    images = np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), np.uint8)
    batch = partitioning.global_batch(mesh, {"images": images, "mask": np.ones(batch_size, np.float32)})
    started = time.perf_counter()
    step = compiled.train.lower(state, batch).compile()
    compile_secs = time.perf_counter() - started
    fastest = float("inf")
    for _ in range(1 + args.repeats):
        started = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        fastest = min(fastest, time.perf_counter() - started)
    flops, peak = train_flops(config), peak_flops(jax.devices()[0].device_kind)
    return {
        "benchmark": "train",
        "network": config.network,
        "batch_size": batch_size,
        "mesh": dict(mesh.shape),
        "dtype": args.dtype,
        "remat": config.remat,
        "backend": config.backend,
        "device": describe_device(),
        "compile_secs": compile_secs,
        "step_secs": fastest,
        "images_per_sec": batch_size / fastest,
        "tflops_per_sec": flops / fastest / 1e12,
        "mfu": peak and flops / fastest / (peak * mesh.size),
        "peak_memory_gib": peak_memory_gib(),
    }


def benchmark_data(args: argparse.Namespace) -> dict[str, Any]:
    """Times the input pipeline alone on 500x375 JPEGs, made here; returns what the JSON line says."""
    from PIL import Image

    from coltran_jax.data import loader, sources
    from coltran_jax.data.config import DataConfig

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(64):
            # Smooth, as photographs are: noise would make JPEGs several times larger.
            small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
            large = small.resize((500, 375), Image.Resampling.BICUBIC)
            large.save(pathlib.Path(folder) / f"{number}.jpg", quality=90)
        config = DataConfig("folder", folder, 1e-9, num_workers=args.num_workers, num_threads=args.num_threads)
        source = sources.open_source(config, "train")
        batches = loader.training_batches(config, source, size=256, batch_size=args.batch_size, seed=0)
        next(batches)
        started = time.perf_counter()
        for _ in range(args.num_batches):
            next(batches)
        secs = time.perf_counter() - started
    per_sec = args.num_batches * args.batch_size / secs
    cores = len(usable_cores())
    return {
        "benchmark": "data",
        "images": "500x375 JPEG to 256x256",
        "batch_size": args.batch_size,
        "num_workers": args.num_workers,
        "num_threads": args.num_threads,
        "cores": cores,
        "images_per_sec": per_sec,
        "images_per_sec_per_core": per_sec / cores,
    }


def print_values(report: dict[str, Any]) -> None:
    """A line a value and the JSON line."""
    for key, value in report.items():
        print(f"{key:<28} {value:.4g}" if isinstance(value, float) else f"{key:<28} {value}")
    print(json.dumps(report))


def describe_device() -> str:
    """The device's name, with the number of cores for a CPU."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"CPU, {len(usable_cores())} cores, {platform.machine()}"


def peak_memory_gib() -> float:
    """Returns the peak memory of the device, or of this process on a CPU, in GiB."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    # Kibibytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def print_report(report: dict[str, Any]) -> None:
    """The table and the JSON line."""
    print(f"{report['size']} size, batch {report['batch_size']}, {report['dtype']}, {report['device']}")
    table = [["stage", "compile s", "ms/image", "images/s", "roofline: arithmetic", "memory ms", "times roofline"]]
    for stage in report["stages"]:
        line = [stage["stage"], f"{stage['compile_secs']:.1f}"]
        line += [f"{stage['ms_per_image']:.1f}", f"{stage['images_per_sec']:.3f}"]
        found = [stage["floor_arithmetic_ms"], stage["floor_memory_ms"]]
        if None in found:
            line += [""] * 3
        else:
            line += [*(f"{ms:.1f}" for ms in found), f"{stage['ms_per_image'] / max(found):.1f}"]
        table.append(line)
    print("\n".join(text_table(table, left=1)))
    print(
        f"this device: {report['flops_per_sec'] / 1e9:,.0f} GFLOP/s of matrix products, "
        f"{report['bytes_per_sec'] / 2**30:,.1f} GiB/s of memory"
    )
    if report["decoder"] != "sequential" and "num_iterations" in report:
        print(f"iterations a row: {report['num_iterations']:.1f}, of the batch {report['num_iterations_of_batch']:.1f}")
    print(f"peak memory {report['peak_memory_gib']:.2f} GiB")
    if "naive_over_ours" in report:
        print(
            f"the release's algorithm: {report['naive_secs_per_image']:.1f} s an image, "
            f"{report['naive_over_ours']:.0f} times ours"
        )
    if "num_particles" in report:
        count = report["num_particles"]
        print(
            f"{count} particles: {report['particles_ms_per_image']:.0f} ms/image, "
            f"{report['particles_over_samples']:.3f} of {count} samples; reporting progress: "
            f"{report['progress_over_none']:.3f} of not"
        )
    if "first_image_cold_secs" in report:
        print(
            f"start of colorize to its first image: {report['first_image_cold_secs']:.1f} s, "
            f"{report['first_image_warm_secs']:.1f} s with compiled programs kept"
        )
    print(json.dumps(report))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_for("python -m launch.benchmark", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sample = commands.add_parser("sample", help="the three networks, as colorize runs them")
    sample.add_argument("--size", choices=SIZES, default="paper", help="of the networks (paper)")
    sample.add_argument("--weights", type=local_path, metavar="BUNDLE", help="its networks instead of random ones")
    sample.add_argument("--images", type=local_path, metavar="DIR", help="its first images instead of noise")
    sample.add_argument("--decoder", choices=DECODERS, default="sequential", help="way to a row (sequential)")
    sample.add_argument(
        "--window", type=positive(int), metavar="N", help="pixels that fixed_point iterates over at a time"
    )
    sample.add_argument("--batch_size", type=positive(int), default=1, metavar="N", help="images (1)")
    add_compute_options(sample)
    sample.add_argument(
        "--repeats", type=positive(int), default=2, metavar="N", help="runs of which the fastest counts"
    )
    sample.add_argument("--stages", nargs="+", choices=list(PUBLISHED), help="networks to time (all)")
    sample.add_argument("--chunk", type=positive(int), metavar="N", help="channels an upsampler computes at a time")
    sample.add_argument(
        "--naive_rows", type=positive(int), metavar="N", help="also time the release's algorithm on N rows"
    )
    sample.add_argument(
        "--particles", type=positive(int), metavar="P", help="also time known colours with P particles, and progress"
    )
    sample.add_argument("--first_image", action="store_true", help="also time the colorize command, cold and warm")
    train = commands.add_parser("train", help="the training step of a configuration")
    add_config(train)
    train.add_argument("--batch_size", type=positive(int), metavar="N", help="instead of the configuration's")
    train.add_argument("--mesh", help="such as data=8,spatial=2; what is left goes to data")
    train.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="to compute in (auto)")
    train.add_argument("--repeats", type=positive(int), default=3, metavar="N", help="runs of which the fastest counts")
    data = commands.add_parser("data", help="the input pipeline alone")
    data.add_argument("--batch_size", type=positive(int), default=32, metavar="N", help="images (32)")
    data.add_argument("--num_batches", type=positive(int), default=20, metavar="N", help="batches to time (20)")
    data.add_argument("--num_workers", type=int, default=0, metavar="N", help="processes (0)")
    data.add_argument("--num_threads", type=int, default=8, metavar="N", help="threads a process (8)")
    colorize = commands.add_parser("colorize", help="the whole command, files to files, and the host's share of it")
    colorize.add_argument("--images", type=local_path, required=True, metavar="DIR", help="to colorize")
    colorize.add_argument("--weights", type=local_path, metavar="BUNDLE", help="of convert or export (mini)")
    colorize.add_argument("--null_network", action="store_true", help="networks that take no time: the host's limit")
    add_encoding_options(colorize)
    args, overrides = parse_with_config(parser, sys.argv[1:] if argv is None else argv)
    if args.command == "train":
        args.config = read_config(args.config, overrides)
    return args


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Benchmarks; returns the exit status."""
    args = parse_args(argv)
    if args.command == "sample":
        print_report(benchmark_sampling(args))
    else:
        benchmarks = {"train": benchmark_training, "data": benchmark_data, "colorize": benchmark_colorize}
        print_values(benchmarks[args.command](args))
    return 0


if __name__ == "__main__":
    use_huge_pages()
    sys.exit(main())
