"""Throughput of `colorize` on files, and where the host's time goes: `launch.benchmark colorize`."""

import argparse
import contextlib
import io
import os
import pathlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from coltran_jax.colorize_files import Ended, colorize_files
from coltran_jax.images.decoding import read_scan
from coltran_jax.images.encoding import Encoding, library_options, write_image
from coltran_jax.pipeline import MINI, Pipeline, Prepared, load_pipeline
from coltran_jax.planning import Options, plan
from coltran_jax.sampling.options import SamplingOptions
from coltran_jax.stages import usable_cores


def benchmark_colorize(args: argparse.Namespace) -> dict[str, Any]:
    """Times `colorize` on a folder, files to files; returns what the JSON line says.

    The first columns are the stages of one image alone on one core, in milliseconds. "floor" is what libjpeg, libpng
    and the like take to decode and encode the same pixels, the least that any program could take on the host.
    """
    pipeline = load_pipeline(args.weights or MINI)
    if args.null_network:
        pipeline.draw = _identity
    encoding = Encoding(args.format, args.quality, args.compression)
    with tempfile.TemporaryDirectory() as folder:
        options = Options(pathlib.Path(folder) / "whole", encoding=encoding)
        jobs, _, _ = plan([args.images], options)
        with _one_core():
            alone = _stages_alone(pipeline, [job.path for job in jobs], encoding, pathlib.Path(folder) / "alone")
        report: dict[str, Any] = {"benchmark": "colorize", "images": len(jobs), **encoding.resolved, **alone}
        for cores in sorted({1, len(usable_cores())}):
            with _one_core() if cores == 1 else contextlib.nullcontext():
                whole = Options(pathlib.Path(folder) / f"{cores}", encoding=encoding)
                ended = _whole(pipeline, [args.images], whole)
            report[f"images_per_sec_{cores}_cores"] = len(jobs) / ended.secs
            report[f"times_floor_{cores}_cores"] = ended.secs * cores / len(jobs) / alone["floor_ms"] * 1000
            report[f"networks_idle_{cores}_cores"] = 1 - ended.busy_secs / ended.secs
    return report


def _identity(prepared: list[Prepared], *args: Any, **kwargs: Any) -> list[dict[str, np.ndarray]]:
    """Draws a faint tint, which takes no time, in place of the networks."""
    tint = np.array([0, 0, 16], np.uint8)
    return [
        {
            "coarse": np.zeros((1, 64, 64, 3), np.uint8),
            "final": (np.minimum(one.gray_final, 239) + tint)[None],
            "gray": one.gray_final,
            "log_likelihood_bits": np.zeros(1, np.float32),
            "max_probability": np.zeros((1, 64, 64), np.float32),
            "entropy_bits": np.zeros((1, 64, 64), np.float32),
            "log_evidence_bits": np.zeros(1, np.float32),
            "effective_particles": np.ones(1, np.float32),
        }
        for one in prepared
    ]


def _stages_alone(
    pipeline: Pipeline, paths: list[pathlib.Path], encoding: Encoding, output: pathlib.Path
) -> dict[str, float]:
    """Milliseconds an image of each stage, one image after another."""
    secs: Counter[str] = Counter()
    for path in paths:
        with _timed(secs, "decode"):
            scan = read_scan(path)
        with _timed(secs, "prepare"):
            prepared = pipeline.prepare(scan.pixels)
        (drawn,) = pipeline.draw([prepared], SamplingOptions(), batch_size=1)
        with _timed(secs, "chroma"):
            result = pipeline.finish(prepared, drawn)
        target = output / f"{path.stem}.{encoding.format}"
        with _timed(secs, "encode"):
            write_image(target, result.images[0], encoding, scan.metadata)
        with _timed(secs, "floor"):
            Image.open(path).load()
        image = Image.fromarray(result.images[0])
        with _timed(secs, "floor"):
            image.save(io.BytesIO(), **library_options(encoding))
    return {f"{name}_ms": 1000 * value / len(paths) for name, value in secs.items()}


def _whole(pipeline: Pipeline, paths: list[pathlib.Path], options: Options) -> Ended:
    """Runs the whole command."""
    jobs, sheets, found = plan(paths, options)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return colorize_files(pipeline, jobs, sheets, found, options, made_by={})


@contextlib.contextmanager
def _timed(secs: Counter[str], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    secs[name] += time.perf_counter() - started


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Keeps this thread, and those that it starts, on one core, where the system allows that."""
    before = usable_cores()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, before)
