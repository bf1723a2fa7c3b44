"""Image files to colour image files: what `python -m coltran_jax colorize` does.

Everything that can be known to fail is found before anything slow starts: paths, names of outputs, permissions. A
image that fails later does not stop the others.
"""

import collections
import dataclasses
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from coltran_jax.errors import ImageError, TruncatedError, UsageError
from coltran_jax.files import check_writable
from coltran_jax.images.arrays import area_resize, center_square, luminance
from coltran_jax.images.decoding import STANDARD_INPUT, read_image
from coltran_jax.images.files import (
    Found,
    contact_sheet,
    find_images,
    thumbnail,
    write_png,
)
from coltran_jax.pipeline import Colorization, Pipeline
from coltran_jax.sampling.options import SamplingOptions

_GRID_ROWS = 32
_GRID_CELL = (256, 512)


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line's options; see its help and `Pipeline.colorize`."""

    output: pathlib.Path
    batch_size: int | None = None
    square: bool = False
    stages: bool = False
    grid: bool = False
    overwrite: bool = False
    allow_truncated: bool = False
    name: str | None = None
    sampling: SamplingOptions = dataclasses.field(default_factory=SamplingOptions)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One image.

    Attributes:
        path: to read.
        name: of the image in messages and, with ending, in the output folder.
        outputs: for each sample, the files to write: the result and, with stages, the coarse and the fine image.
    """

    path: pathlib.Path
    name: pathlib.PurePath
    outputs: list[tuple[pathlib.Path, ...]]


def plan(paths: Sequence[pathlib.Path], options: Options) -> tuple[list[_Job], list[pathlib.Path], Found]:
    """Plans which files are read and written.

    Returns:
        Jobs, contact sheets, and what was found.

    Raises:
        ValueError: a missing path, a folder without images, two results of one name, a result that exists, or an
            output folder that cannot be written to.
    """
    found = find_images(paths, options.output)
    jobs = []
    for path, name in found.images:
        own = pathlib.PurePath(options.name) if options.name and str(path) in STANDARD_INPUT else name
        jobs.append(_Job(path, own, _outputs(own, options)))
    sheets = _sheets(len(jobs), options) if options.grid else []
    wanted = [(file, job.path) for job in jobs for files in job.outputs for file in files]
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
    if existing and not options.overwrite:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UsageError(f"{existing[0]}{more} exists; give --overwrite to replace it, or another --output")
    return jobs, sheets, found


def _outputs(name: pathlib.PurePath, options: Options) -> list[tuple[pathlib.Path, ...]]:
    outputs = []
    for number in range(1, options.sampling.samples + 1):
        base = f"{name}-{number}" if options.sampling.samples > 1 else f"{name}"
        endings = ("", "-coarse", "-fine") if options.stages else ("",)
        outputs.append(tuple(options.output / f"{base}{ending}.png" for ending in endings))
    return outputs


def _sheets(num_images: int, options: Options) -> list[pathlib.Path]:
    count = -(-num_images // _GRID_ROWS)
    return [options.output / (f"grid-{i + 1}.png" if count > 1 else "grid.png") for i in range(count)]


def colorize_files(
    pipeline: Pipeline, jobs: Sequence[_Job], sheets: Sequence[pathlib.Path], found: Found, options: Options
) -> int:
    """Colorizes; prints a line an image and a summary.

    Returns:
        The exit status: 0, or 1 if some images failed, or 2 if all did.
    """
    started = time.monotonic()
    failures: list[str] = []
    rows: list[list[np.ndarray]] = []
    pages = iter(sheets)
    with tqdm(total=len(jobs), unit="image", smoothing=0, disable=None) as bar:
        for job, outcome in _colorized(pipeline, jobs, options):
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                image, result = outcome
                _write(job, result)
                if options.grid:
                    rows.append(_grid_row(image, result, options.square))
                bar.write(f"{job.path} -> {_described(job, result)}")
            except (ImageError, OSError) as error:
                failures.append(" ".join(str(error).split()))
                bar.write(f"{job.path} failed")
            if len(rows) == _GRID_ROWS:
                write_png(next(pages), contact_sheet(rows))
                rows = []
            bar.update()
    if rows:
        write_png(next(pages), contact_sheet(rows))
    done = len(jobs) - len(failures)
    print(_summary(done, len(failures), len(found.skipped), options, time.monotonic() - started), flush=True)
    for failure in failures:
        tqdm.write(f"error: {failure}", file=sys.stderr)
    if not failures:
        return 0
    return 1 if done else 2


def _colorized(
    pipeline: Pipeline, jobs: Sequence[_Job], options: Options
) -> Iterator[tuple[_Job, tuple[np.ndarray, Colorization] | Exception]]:
    """Each job with its image and its colorization, or with what went wrong."""
    batch_size = options.batch_size or pipeline.default_batch_size
    at_once = min(max(1, batch_size // options.sampling.samples), len(jobs))
    pending: list[tuple[_Job, np.ndarray]] = []
    for i, job in enumerate(jobs):
        try:
            pending.append((job, read_image(job.path, allow_truncated=options.allow_truncated)))
        except TruncatedError as error:
            yield job, ImageError(f"{error}; --allow_truncated colours what is there")
        except ImageError as error:
            yield job, error
        if pending and (len(pending) == at_once or i == len(jobs) - 1):
            results = pipeline.colorize(
                [image for _, image in pending],
                options=options.sampling,
                square=options.square,
                batch_size=min(batch_size, at_once * options.sampling.samples),
            )
            for (job, image), result in zip(pending, results, strict=True):
                yield job, (image, result)
            pending = []


def _write(job: _Job, result: Colorization) -> None:
    # One upsampler for both steps makes no fine image.
    stages = [stage for stage in (result.images, result.coarse, result.fine) if stage is not None]
    for files, *images in zip(job.outputs, *stages, strict=True):
        for file, image in zip(files, images, strict=False):
            try:
                write_png(file, image)
            except OSError as error:
                # The system's own message may have the name of a temporary file, or none.
                raise OSError(f"{job.path}: {file} could not be written ({error.strerror or error})") from None


def _described(job: _Job, result: Colorization) -> str:
    bits = ", ".join(f"{value:.2f}" for value in -result.log_likelihood_bits / result.coarse[0, ..., 0].size)
    first, last = job.outputs[0][0], job.outputs[-1][0]
    files = f"{first}" if first == last else f"{first} .. {last.name}"
    return f"{files} ({bits} bits per pixel)"


def _grid_row(image: np.ndarray, result: Colorization, square: bool) -> list[np.ndarray]:
    colors = image[..., :3] if image.shape[-1] >= 3 else image[..., :1]
    if square:
        gray, colors = result.gray, area_resize(center_square(colors), *result.gray.shape[:2])
    else:
        gray = np.rint(luminance(colors)).astype(np.uint8)[..., None]
    truth = [colors] if colors.shape[-1] == 3 else []
    return [thumbnail(image, *_GRID_CELL) for image in (gray, *result.images, *truth)]


def _summary(done: int, failed: int, skipped: int, options: Options, secs: float) -> str:
    parts = [f"{done} image{'s' * (done != 1)} colorized"]
    if options.sampling.samples > 1:
        parts[0] += f", {options.sampling.samples} samples each,"
    parts[0] += f" in {secs:.1f} s"
    if failed:
        parts.append(f"{failed} failed")
    if skipped:
        parts.append(f"{skipped} other file{'s' * (skipped != 1)} skipped")
    return "; ".join(parts)
