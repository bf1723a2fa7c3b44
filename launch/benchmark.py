"""Command line: how fast and in how much memory, measured here and now.

`sample` times the three networks, each compiled ahead, and tells how near they are to what the device could do at best.
Weights and gray images are random: neither speed nor memory depends on their values, but for the decoder
"fixed_point"; give it a bundle and images. `train` times the training step of a configuration, `data` the input
pipeline alone, `colorize` the whole command on files, `startup` the time to its first image. A table for people, and
one JSON line for programs.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from coltran_jax.cli.configuration import add_config, parse_with_config, read_config
from coltran_jax.cli.shared import (
    add_compute_options,
    add_encoding_options,
    failing_in_one_line,
    local_path,
    parser_for,
    positive,
    use_huge_pages,
)
from coltran_jax.networks.chain import PUBLISHED
from coltran_jax.sampling.options import DECODERS
from coltran_jax.stages import usable_cores
from launch.machine import describe_device, peak_memory_gib
from launch.sampling_speed import SIZES, benchmark_sampling, print_sampling
from launch.startup import benchmark_startup
from launch.throughput import benchmark_colorize


def benchmark_training(args: argparse.Namespace) -> dict[str, Any]:
    """Times the jitted step of a configuration on random images; returns what the JSON line says."""
    from coltran_jax import partitioning
    from coltran_jax.training.config import for_platform
    from coltran_jax.training.loop import fresh_state, programs
    from coltran_jax.training.reporting import peak_flops, train_flops

    batch_size = args.batch_size or args.config.batch_size
    config = dataclasses.replace(args.config, batch_size=batch_size, eval_batch_size=batch_size, dtype=args.dtype)
    config = for_platform(config, jax.default_backend())
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
        "dtype": config.dtype,
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
    startup = commands.add_parser("startup", help="from the colorize command to its first image")
    startup.add_argument("--weights", type=local_path, metavar="BUNDLE", help="of convert or export (mini)")
    startup.add_argument(
        "--repeats", type=positive(int), default=3, metavar="N", help="warm runs of which the fastest counts (3)"
    )
    args, overrides = parse_with_config(parser, sys.argv[1:] if argv is None else argv)
    if args.command == "train":
        args.config = read_config(args.config, overrides)
    return args


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Benchmarks; returns the exit status."""
    args = parse_args(argv)
    if args.command == "sample":
        print_sampling(benchmark_sampling(args))
    else:
        benchmarks = {
            "train": benchmark_training,
            "data": benchmark_data,
            "colorize": benchmark_colorize,
            "startup": benchmark_startup,
        }
        print_values(benchmarks[args.command](args))
    return 0


if __name__ == "__main__":
    use_huge_pages()
    sys.exit(main())
