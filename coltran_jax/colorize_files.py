"""Image files to colour image files: what `coltran colorize` does once it is planned; see `coltran_jax.planning`.

An image that fails does not stop the others.
"""

import contextlib
import dataclasses
import itertools
import logging
import math
import operator
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from coltran_jax import manifest
from coltran_jax.errors import Interrupted, one_line
from coltran_jax.files import remove_leftovers
from coltran_jax.images import heat_map
from coltran_jax.images.arrays import (
    NUM_COARSE_COLORS,
    area_resize,
    center_square,
    eight_bits,
    luminance,
    without_alpha,
)
from coltran_jax.images.encoding import Encoding, write_image
from coltran_jax.images.files import (
    Found,
    contact_sheet,
    thumbnail,
)
from coltran_jax.images.metadata import NONE as NO_METADATA
from coltran_jax.images.metadata import Metadata
from coltran_jax.inference import device_kind
from coltran_jax.pipeline import Colorization, Pipeline, Prepared
from coltran_jax.planning import GRID_ROWS, Job, Options, deciding, read_job
from coltran_jax.sampling.known import KnownCoarse
from coltran_jax.stages import Stages, usable_cores

_HOW_TO_KEEP_BITS = "--format png or tif keeps them, with pip install 'coltran_jax[archive]'"
_GRID_CELL = (256, 512)
# Pixels of all images that are being read, coloured or written, and of their results: about 1 GB.
_PIXELS_AT_ONCE = 128 * 2**20


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of `colorize_files`.

    Attributes:
        status: the exit status, 0, or 1 if some images failed, or 2 if all did.
        secs: that it took.
        busy_secs: in which the networks ran.
    """

    status: int
    secs: float
    busy_secs: float


def colorize_files(
    pipeline: Pipeline,
    jobs: Sequence[Job],
    sheets: Sequence[pathlib.Path],
    found: Found,
    options: Options,
    *,
    made_by: Mapping[str, Any],
    manifest_name: str = manifest.NAME,
) -> Ended:
    """Colorizes; prints a line an image and a summary, and writes the manifest.

    Args:
        pipeline: the networks.
        jobs: from `coltran_jax.planning.plan`.
        sheets: from it.
        found: from it.
        options: the command line's.
        made_by: what, beside `options`, decides the results, by name, for the manifest.
        manifest_name: of the manifest in the output folder.

    Raises:
        UsageError: files that `options.skip_existing` would keep were made with other options.
        Interrupted: SIGTERM or Ctrl-C came; what was being written is finished.
    """
    started = time.monotonic()
    record = manifest.Manifest(options.output, {**deciding(options), **made_by}, name=manifest_name)
    total, kept = len(jobs), []
    if options.skip_existing:
        exist = [job.exists for job in jobs]
        kept = list(itertools.compress(jobs, exist))
        jobs = list(itertools.compress(jobs, map(operator.not_, exist)))
        record.check(file for job in kept for file in job.files)
        remove_leftovers(file for job in jobs for file in job.files)
    record.begin()
    failures: list[str] = []
    rows: list[list[np.ndarray]] = []
    pages = iter(sheets)
    stages = _stages(pipeline, options, total)
    done = 0
    with (
        contextlib.closing(record),
        tqdm(total=len(jobs), unit="image", smoothing=0, disable=None) as bar,
        _stop_signals() as stopped,
    ):
        for job, outcome in stages.run(jobs, lambda: bool(stopped)):
            page = {} if job.page is None else {"page": job.page + 1}
            if isinstance(outcome, Exception):
                if not isinstance(outcome, ValueError | OSError):
                    raise outcome
                failures.append(one_line(outcome))
                record.add(job.path, **page, error=failures[-1])
                bar.write(f"{job.path} failed")
            else:
                done += 1
                record.add(
                    job.path, **page, outputs=job.files, bits_per_pixel=outcome.bits, seconds=round(outcome.secs, 3)
                )
                bar.write(f"{job.path} -> {_described(job, outcome)}")
                rows += [outcome.grid_row] if outcome.grid_row else []
            if len(rows) == GRID_ROWS:
                write_image(next(pages), contact_sheet(rows))
                rows = []
            bar.update()
    secs = time.monotonic() - started
    if not stopped and rows:
        write_image(next(pages), contact_sheet(rows))
    print(_summary(done, len(failures), len(kept), len(found.skipped), options, secs, stages.busy_secs), flush=True)
    for failure in failures:
        tqdm.write(f"error: {failure}", file=sys.stderr)
    if stopped:
        left = len(jobs) - done - len(failures)
        raise Interrupted(f"interrupted; {left} of {total} images are left: go on with --skip_existing")
    status = (1 if done or kept else 2) if failures else 0
    return Ended(status, secs, stages.busy_secs)


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in a list; a second one ends the program at once, as ever."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[number])

    # Signals are the main thread's.
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclasses.dataclass(frozen=True)
class _Written:
    """An image whose results have been written, as far as it is told of.

    Attributes:
        bits: of each sample, per pixel.
        evidence: of the known colours, as one reads it; empty without any.
        secs: from the beginning of its being finished.
        grid_row: its row of the contact sheet, None where there is none.
    """

    bits: list[float]
    evidence: str
    secs: float
    grid_row: list[np.ndarray] | None


def _stages(pipeline: Pipeline, options: Options, total: int) -> Stages:
    batch_size = options.batch_size or pipeline.default_batch_size
    at_once = min(max(1, batch_size // options.sampling.num_draws), max(1, total))

    def read(job: Job) -> tuple[Prepared, Metadata]:
        scan = read_job(job, options)
        if scan.pixels.shape[-1] % 2 == 0:
            options.encoding.check_alpha(job.path)
        if scan.bits == 16 and scan.pixels.dtype == np.uint8 and not options.square:
            logging.warning("%s: its 16 bits become 8; %s", job.path, _HOW_TO_KEEP_BITS)
        metadata = NO_METADATA if options.strip_metadata else scan.metadata
        return pipeline.prepare(scan.pixels, square=options.square, known=job.known), metadata

    def draw(batch: list[tuple[Prepared, Metadata]]) -> list[dict[str, np.ndarray]]:
        # A batch that is not full is filled up, so that one size is compiled.
        size = min(batch_size, at_once * options.sampling.num_draws)
        return pipeline.draw([prepared for prepared, _ in batch], options.sampling, batch_size=size)

    def finish(job: Job, read: tuple[Prepared, Metadata], drawn: dict[str, np.ndarray]) -> _Written:
        started = time.monotonic()
        prepared, metadata = read
        result = pipeline.finish(prepared, drawn)
        _write(job, result, options.encoding, metadata)
        row = _grid_row(prepared.image, result, options.square) if options.grid else None
        bits = [float(bits) for bits in -result.log_likelihood_bits / result.coarse[0, ..., 0].size]
        evidence = "" if prepared.known is None else _evidence(job, prepared.known, result)
        return _Written(bits, evidence, time.monotonic() - started, row)

    def cost(job: Job) -> int:
        # The image and its results, at its own size and at the networks'.
        return (job.pixels + math.prod(pipeline.final_resolution)) * (1 + options.sampling.samples)

    threads = len(usable_cores())
    # A CPU draws two batches no sooner than one.
    in_flight = 1 if device_kind(pipeline.devices[0]) == "cpu" else 2
    return Stages(
        read,
        draw,
        finish,
        cost,
        at_once=at_once,
        limit=_PIXELS_AT_ONCE,
        num_threads=threads,
        in_flight=in_flight,
    )


def _write(job: Job, result: Colorization, encoding: Encoding, metadata: Metadata) -> None:
    for number, files in enumerate(job.outputs):
        for what, file in files.items():
            try:
                if what == "images":
                    write_image(file, result.images[number], encoding, metadata)
                elif what == "entropy":
                    write_image(file, heat_map.entropy_map(result.entropy_bits[number], *result.images.shape[1:3]))
                # One upsampler for both steps makes no fine image.
                elif (stage := getattr(result, what)) is not None:
                    write_image(file, stage[number])
            except OSError as error:
                # The system's own message may have the name of a temporary file, or none.
                raise OSError(f"{job.path}: {file} could not be written ({error.strerror or error})") from None


def _evidence(job: Job, known: KnownCoarse, result: Colorization) -> str:
    """Tells how well the samples suit the known colours, and warns where chance would suit them better."""
    count = int((np.asarray(known.colors) >= 0).sum())
    bits = ", ".join(f"{value:.0f}" for value in -result.log_evidence_bits)
    if (-result.log_evidence_bits > count * np.log2(NUM_COARSE_COLORS)).any():
        logging.warning(
            "%s: to the networks the known colours are less likely than colours by chance (%s bits for %d coarse "
            "pixels), so that the samples may not suit them; look at the hints, or give more --particles",
            job.path,
            bits,
            count,
        )
    effective = ", ".join(f"{value:.1f}" for value in result.effective_particles)
    return f"; known colours: {bits} bits for {count} coarse pixels, effective particles {effective}"


def _described(job: Job, written: _Written) -> str:
    bits = ", ".join(f"{value:.2f}" for value in written.bits)
    first, last = (files["images"] for files in (job.outputs[0], job.outputs[-1]))
    files = f"{first}" if first == last else f"{first} .. {last.name}"
    return f"{files} ({bits} bits per pixel{written.evidence})"


def _grid_row(image: np.ndarray, result: Colorization, square: bool) -> list[np.ndarray]:
    image = eight_bits(image)
    colors = without_alpha(image)
    if square:
        gray, colors = result.gray, area_resize(center_square(colors), *result.gray.shape[:2])
    else:
        gray = np.rint(luminance(colors)).astype(np.uint8)[..., None]
    truth = [colors] if colors.shape[-1] == 3 else []
    return [thumbnail(image, *_GRID_CELL) for image in (gray, *map(eight_bits, result.images), *truth)]


def _summary(done: int, failed: int, kept: int, skipped: int, options: Options, secs: float, busy_secs: float) -> str:
    parts = [f"{done} image{'s' * (done != 1)} colorized"]
    if options.sampling.samples > 1:
        parts[0] += f", {options.sampling.samples} samples each,"
    parts[0] += f" in {secs:.1f} s"
    if done > 1:
        parts[0] += f" (networks busy {busy_secs / secs:.0%} of the time)"
    if kept:
        parts.append(f"{kept} kept that exist")
    if failed:
        parts.append(f"{failed} failed")
    if skipped:
        parts.append(f"{skipped} other file{'s' * (skipped != 1)} skipped")
    return "; ".join(parts)
