"""Speed of the three networks beside what the device could do at best: `launch.benchmark sample`."""

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax import config as configs
from coltran_jax.checkpoints.bundles import Bundle, load_bundle
from coltran_jax.cli.shared import (
    compute_options,
)
from coltran_jax.errors import UsageError
from coltran_jax.evaluation.tables import text_table
from coltran_jax.images import arrays
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
from launch import control, roofline
from launch.machine import describe_device, peak_memory_gib

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
    device, batch = jax.devices()[0], args.batch_size
    compute, kind = compute_options(args), device_kind(device)
    compute.check_platform(device.platform)
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
        "dtype": compute.dtype.name,
        "decoder": args.decoder,
        "backend": compute.backend,
        "device": describe_device(),
        **dataclasses.asdict(rates),
        "stages": [dataclasses.asdict(timing) for timing in timings],
        "peak_memory_gib": peak,
        **(iterations or {}),
        **(naive or {}),
        **control_costs,
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


def print_sampling(report: dict[str, Any]) -> None:
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
    print(json.dumps(report))
