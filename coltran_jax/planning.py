"""The images that a run of `coltran colorize` reads, and the files that it writes.

Everything that can be known to fail is found here, before anything slow starts: paths, names of outputs, permissions.
"""

import collections
import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

from coltran_jax.errors import ImageError, TruncatedError, UsageError
from coltran_jax.files import check_writable, existing, is_remote, path_of
from coltran_jax.images import heat_map
from coltran_jax.images.decoding import STANDARD_INPUT, Scan, header_of, read_scan
from coltran_jax.images.encoding import Encoding
from coltran_jax.images.files import Found, find_images
from coltran_jax.images.hints import KnownColors, read_known
from coltran_jax.sampling.options import SamplingOptions

# Images of a contact sheet.
GRID_ROWS = 32
# Of a compressed photograph, for an estimate: a JPEG of quality 95 has fewer, one of low quality more.
_PIXELS_A_BYTE = 4


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
class Job:
    """One image.

    Attributes:
        path: to read.
        page: of the file, from 0; None for the first, with a notice if there are others.
        outputs: for each sample, the files to write, by what they show: the result, and what else was asked for, the
            coarse and the fine image and the map of the entropy.
        known: its colours that are known; None for none.
        exists: whether all of its files were there when the run was planned.
    """

    path: pathlib.Path
    page: int | None
    outputs: list[dict[str, pathlib.Path]]
    known: KnownColors | None = None
    exists: bool = False

    @property
    def files(self) -> list[pathlib.Path]:
        """Returns all files to write."""
        return [file for files in self.outputs for file in files.values()]

    @property
    def pixels(self) -> int:
        """Returns the number of pixels by the file's header; 0 where that cannot be told.

        Of a file in an object store, an estimate by its size: a header would be asked for one image after another.
        """
        if is_remote(self.path):
            # Whatever the store raises; reading tells of it.
            with contextlib.suppress(Exception):
                return _PIXELS_A_BYTE * self.path.stat().st_size
            return 0
        return 0 if str(self.path) in STANDARD_INPUT else header_of(self.path).pixels


def plan(paths: Sequence[pathlib.Path], options: Options) -> tuple[list[Job], list[pathlib.Path], Found]:
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
            jobs.append(Job(path, page if options.all_pages else None, _outputs(numbered, options)))
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
    there = existing(users, options.output)
    found_there = [file for file in users if file in there]
    # Object stores have no folders.
    folders = [] if is_remote(options.output) else [file for file in found_there if file.is_dir()]
    if folders:
        raise UsageError(f"{folders[0]} is a folder, expected a file to write")
    if found_there and not options.overwrite and not options.skip_existing:
        more = f" and {len(found_there) - 1} more" if len(found_there) > 1 else ""
        raise UsageError(
            f"{found_there[0]}{more} exists; give --skip_existing to keep it, --overwrite to replace it, or another "
            "--output"
        )
    jobs = [dataclasses.replace(job, exists=there.issuperset(job.files)) for job in jobs]
    if options.hints or options.keep:
        if len(jobs) != 1:
            raise UsageError(
                f"{options.hints or options.keep}: known colours are of one image, and {len(jobs)} are named; colorize "
                "it alone"
            )
        image = read_job(jobs[0], options).pixels
        known = read_known(options.hints, options.keep, image, options.square)
        jobs = [dataclasses.replace(jobs[0], known=known)]
    return jobs, sheets, found


def read_job(job: Job, options: Options) -> Scan:
    """Reads the image of a job.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        return read_scan(
            job.path,
            page=job.page,
            allow_truncated=options.allow_truncated,
            sixteen_bits=options.encoding.keeps_sixteen_bits and not options.square,
        )
    except TruncatedError as error:
        raise ImageError(f"{error}; --allow_truncated colours what is there") from None


def _shard_of(job: Job, output: pathlib.Path, num_shards: int) -> int:
    """Returns the number of a job's share, by the name of its output, wherever the output folder is mounted."""
    digest = hashlib.sha256(job.files[0].relative_to(output).as_posix().encode()).digest()
    return int.from_bytes(digest[:8], "big") % num_shards


def paths_of(file: pathlib.Path) -> list[pathlib.Path]:
    """Reads the paths or addresses of a list, one a line; empty lines are left out.

    Raises:
        UsageError: it cannot be read, or lists nothing, or an address that cannot be used.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read as a list of paths ({error})") from None
    paths = [path_of(line) for line in lines if line.strip()]
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
    count = -(-num_images // GRID_ROWS)
    return [options.output / (f"grid-{i + 1}.png" if count > 1 else "grid.png") for i in range(count)]


def deciding(options: Options) -> dict[str, Any]:
    """The options that decide what is written, of JSON's types, by name.

    Manifests of before do not have the options that were added later, so that these are left out at their defaults.
    """
    own = {name: getattr(options, name) for name in ("square", "stages", "strip_metadata")}
    own |= {"entropy": True} if options.entropy else {}
    return {**options.sampling.deciding, **own, **options.encoding.resolved}
