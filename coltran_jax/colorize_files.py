"""Image files to colour image files: what `python -m coltran_jax colorize` does.

Everything that can be known to fail is found before anything slow starts: paths, names of outputs, permissions. A
image that fails later does not stop the others.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import logging
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
from coltran_jax.errors import ImageError, Interrupted, TruncatedError, UsageError
from coltran_jax.files import check_writable, remove_leftovers
from coltran_jax.images import heat_map
from coltran_jax.images.arrays import (
    NUM_COARSE_COLORS,
    area_resize,
    center_square,
    eight_bits,
    luminance,
    without_alpha,
)
from coltran_jax.images.decoding import STANDARD_INPUT, Scan, header_of, read_scan
from coltran_jax.images.encoding import Encoding, write_image
from coltran_jax.images.files import (
    Found,
    contact_sheet,
    find_images,
    thumbnail,
)
from coltran_jax.images.hints import KnownColors, read_known
from coltran_jax.images.metadata import NONE as NO_METADATA
from coltran_jax.images.metadata import Metadata
from coltran_jax.inference import device_kind
from coltran_jax.pipeline import Colorization, Pipeline, Prepared
from coltran_jax.sampling.known import KnownCoarse
from coltran_jax.sampling.options import SamplingOptions
from coltran_jax.stages import Stages, usable_cores

_GRID_ROWS = 32
_HOW_TO_KEEP_BITS = "--format png keeps them, with pip install 'coltran_jax[archive]', of images without a profile"
_GRID_CELL = (256, 512)
# Pixels of all images that are being read, coloured or written, and of their results: about 1 GB.
_PIXELS_AT_ONCE = 128 * 2**20


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line's options; see its help and `Pipeline.colorize`."""

    output: pathlib.Path
    batch_size: int | None = None
    square: bool = False
    stages: bool = False
    entropy: bool = False
    grid: bool = False
    overwrite: bool = False
    skip_existing: bool = False
    strip_metadata: bool = False
    encoding: Encoding = dataclasses.field(default_factory=Encoding)
    allow_truncated: bool = False
    all_pages: bool = False
    shard: tuple[int, int] | None = None
    hints: pathlib.Path | None = None
    keep: pathlib.Path | None = None
    name: str | None = None
    sampling: SamplingOptions = dataclasses.field(default_factory=SamplingOptions)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One image.

    Attributes:
        path: to read.
        page: of the file, from 0; None for the first, with a notice if there are others.
        outputs: for each sample, the files to write, by what they show: the result, and what else was asked for, the
            coarse and the fine image and the map of the entropy.
        known: its colours that are known; None for none.
    """

    path: pathlib.Path
    page: int | None
    outputs: list[dict[str, pathlib.Path]]
    known: KnownColors | None = None

    @property
    def exists(self) -> bool:
        """Returns whether all of its files exist."""
        return all(file.exists() for file in self.files)

    @property
    def files(self) -> list[pathlib.Path]:
        """Returns all files to write."""
        return [file for files in self.outputs for file in files.values()]

    @property
    def pixels(self) -> int:
        """Returns the number of pixels by the file's header; 0 where that cannot be told."""
        return 0 if str(self.path) in STANDARD_INPUT else header_of(self.path).pixels


def plan(paths: Sequence[pathlib.Path], options: Options) -> tuple[list[_Job], list[pathlib.Path], Found]:
    """Plans which files are read and written.

    Returns:
        Jobs, contact sheets, and what was found.

    Raises:
        ValueError: a missing path, a folder without images, two results of one name, a result that exists, or an
            output folder that cannot be written to.
    """
    if options.entropy:
        heat_map.check_available()
    found = find_images(paths, options.output)
    jobs = []
    for path, name in found.images:
        own = pathlib.PurePath(options.name) if options.name and str(path) in STANDARD_INPUT else name
        pages = header_of(path).pages if options.all_pages else 1
        for page in range(pages):
            numbered = own.with_name(f"{own.name}-p{page + 1}") if pages > 1 else own
            jobs.append(_Job(path, page if options.all_pages else None, _outputs(numbered, options)))
    if options.shard is not None:
        jobs = [job for job in jobs if _shard_of(job, options.output, options.shard[1]) == options.shard[0]]
    sheets = _sheets(len(jobs), options) if options.grid else []
    wanted = [(file, job.path) for job in jobs for file in job.files]
    wanted += [(sheet, "the contact sheet") for sheet in sheets]
    users = collections.defaultdict(list)
    for file, user in wanted:
        users[file].append(user)
    clashes = [(file, several) for file, several in users.items() if len(several) > 1]
    if clashes:
        listed = "; ".join(
            f"{' and '.join(map(str, several))} would both write {file}" for file, several in clashes[:10]
        )
        more = f"; and {len(clashes) - 10} more such names" if len(clashes) > 10 else ""
        raise UsageError(f"{listed}{more}; rename them, or colorize them apart")
    check_writable(options.output)
    existing = [file for file in users if file.exists()]
    if any(file.is_dir() for file in existing):
        raise UsageError(f"{next(file for file in existing if file.is_dir())} is a folder, expected a file to write")
    if existing and not options.overwrite and not options.skip_existing:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UsageError(
            f"{existing[0]}{more} exists; give --skip_existing to keep it, --overwrite to replace it, or another "
            "--output"
        )
    if options.hints or options.keep:
        if len(jobs) != 1:
            raise UsageError(
                f"{options.hints or options.keep}: known colours are of one image, and {len(jobs)} are named; colorize "
                "it alone"
            )
        image = _scan(jobs[0], options).pixels
        known = read_known(options.hints, options.keep, image, options.square)
        jobs = [dataclasses.replace(jobs[0], known=known)]
    return jobs, sheets, found


def _scan(job: _Job, options: Options) -> Scan:
    try:
        return read_scan(
            job.path,
            page=job.page,
            allow_truncated=options.allow_truncated,
            sixteen_bits=options.encoding.keeps_sixteen_bits and not options.square,
        )
    except TruncatedError as error:
        raise ImageError(f"{error}; --allow_truncated colours what is there") from None


def _shard_of(job: _Job, output: pathlib.Path, num_shards: int) -> int:
    """Returns the number of a job's share, by the name of its output, wherever the output folder is mounted."""
    digest = hashlib.sha256(job.files[0].relative_to(output).as_posix().encode()).digest()
    return int.from_bytes(digest[:8], "big") % num_shards


def paths_of(file: pathlib.Path) -> list[pathlib.Path]:
    """Reads the paths of a list, one a line; empty lines are left out.

    Raises:
        UsageError: it cannot be read, or lists nothing.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read as a list of paths ({error})") from None
    paths = [pathlib.Path(line) for line in lines if line.strip()]
    if not paths:
        raise UsageError(f"{file}: lists no images")
    return paths


def _outputs(name: pathlib.PurePath, options: Options) -> list[dict[str, pathlib.Path]]:
    outputs = []
    for number in range(1, options.sampling.samples + 1):
        base = f"{name}-{number}" if options.sampling.samples > 1 else f"{name}"
        more = ["coarse", "fine"] * options.stages + ["entropy"] * options.entropy
        names = {"images": f"{base}.{options.encoding.format}", **{what: f"{base}-{what}.png" for what in more}}
        outputs.append({what: options.output / name for what, name in names.items()})
    return outputs


def _sheets(num_images: int, options: Options) -> list[pathlib.Path]:
    count = -(-num_images // _GRID_ROWS)
    return [options.output / (f"grid-{i + 1}.png" if count > 1 else "grid.png") for i in range(count)]


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
    jobs: Sequence[_Job],
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
        jobs: from `plan`.
        sheets: from `plan`.
        found: from `plan`.
        options: the command line's.
        made_by: what, beside `options`, decides the results, by name, for the manifest.
        manifest_name: of the manifest in the output folder.

    Raises:
        UsageError: files that `options.skip_existing` would keep were made with other options.
        Interrupted: SIGTERM or Ctrl-C came; what was being written is finished.
    """
    started = time.monotonic()
    record = manifest.Manifest(options.output, {**_deciding(options), **made_by}, name=manifest_name)
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
    with tqdm(total=len(jobs), unit="image", smoothing=0, disable=None) as bar, _stop_signals() as stopped:
        for job, outcome in stages.run(jobs, lambda: bool(stopped)):
            page = {} if job.page is None else {"page": job.page + 1}
            if isinstance(outcome, Exception):
                if not isinstance(outcome, ValueError | OSError):
                    raise outcome
                failures.append(" ".join(str(outcome).split()))
                record.add(job.path, **page, error=failures[-1])
                bar.write(f"{job.path} failed")
            else:
                done += 1
                record.add(
                    job.path, **page, outputs=job.files, bits_per_pixel=outcome.bits, seconds=round(outcome.secs, 3)
                )
                bar.write(f"{job.path} -> {_described(job, outcome)}")
                rows += [outcome.grid_row] if outcome.grid_row else []
            if len(rows) == _GRID_ROWS:
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


def _deciding(options: Options) -> dict[str, Any]:
    """The options that decide what is written, of JSON's types."""
    # Decoders draw the same colours, and no colours are known. Manifests of before do not have the options that were
    # added later, whose defaults change nothing.
    defaults = {name: getattr(SamplingOptions(), name) for name in ("top_p", "best_of", "rank", "shared_noise")}
    sampling = {
        key: value
        for key, value in dataclasses.asdict(options.sampling).items()
        if key not in ("decoder", "particles") and (key not in defaults or value != defaults[key])
    }
    own = {name: getattr(options, name) for name in ("square", "stages", "strip_metadata")}
    own |= {"entropy": True} if options.entropy else {}
    return {**sampling, **own, **options.encoding.resolved}


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

    def read(job: _Job) -> tuple[Prepared, Metadata]:
        scan = _scan(job, options)
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

    def finish(job: _Job, read: tuple[Prepared, Metadata], drawn: dict[str, np.ndarray]) -> _Written:
        started = time.monotonic()
        prepared, metadata = read
        result = pipeline.finish(prepared, drawn)
        _write(job, result, options.encoding, metadata)
        row = _grid_row(prepared.image, result, options.square) if options.grid else None
        bits = [float(bits) for bits in -result.log_likelihood_bits / result.coarse[0, ..., 0].size]
        evidence = "" if prepared.known is None else _evidence(job, prepared.known, result)
        return _Written(bits, evidence, time.monotonic() - started, row)

    def cost(job: _Job) -> int:
        # The image, and its results.
        return job.pixels * (1 + options.sampling.samples)

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


def _write(job: _Job, result: Colorization, encoding: Encoding, metadata: Metadata) -> None:
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


def _evidence(job: _Job, known: KnownCoarse, result: Colorization) -> str:
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


def _described(job: _Job, written: _Written) -> str:
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
