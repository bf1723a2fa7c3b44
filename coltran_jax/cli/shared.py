"""Parsers, groups of options, and errors in one line, which the command lines share."""

import argparse
import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coltran_jax.cluster import joined
from coltran_jax.errors import Interrupted, TrainingError, UsageError, one_line
from coltran_jax.files import is_address, path_of
from coltran_jax.images.encoding import FORMATS
from coltran_jax.sampling.options import SamplingOptions, help_of

_CLUSTER = ("coordinator_address", "num_processes", "process_id")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors of commands are."""

    def __init__(self, *args: Any, **kwargs: Any):
        # An abbreviation would change its meaning, or become an error, when an option is added.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str):
        self.exit(2, f"error: {message} ({self.prog} --help lists all options)\n")


def parser_for(program: str, doc: str) -> argparse.ArgumentParser:
    """Returns a parser that describes its program by a module's docstring."""
    doc = doc.removeprefix("Command line: ")
    return _Parser(prog=program, description=doc[0].upper() + doc[1:])


def add_sampling_options(
    parser: argparse.ArgumentParser, *, without: Sequence[str] = (), defaults: Mapping[str, Any] | None = None
) -> None:
    """Adds a flag for each field of `SamplingOptions`; `sampling_options` returns those that were given.

    Args:
        parser: to add to.
        without: fields that the command does not offer.
        defaults: defaults that differ from those of `SamplingOptions`.
    """
    defaults = dict(defaults or {})
    for field in dataclasses.fields(SamplingOptions):
        if field.name in without:
            continue
        flag, kind = f"--{field.name}", type(field.default)
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=None, help=help_of(field.name))
        else:
            choices = field.metadata["choices"]
            metavar = None if choices else {int: "N", float: "X"}[kind]
            default = defaults.get(field.name)
            text = help_of(field.name, default)
            parser.add_argument(flag, type=kind, choices=choices, metavar=metavar, default=default, help=text)


def sampling_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, Any]:
    """Returns the sampling options that the command line names, checked; for others a bundle's metadata may apply."""
    values = {field.name: getattr(args, field.name, None) for field in dataclasses.fields(SamplingOptions)}
    given = {name: value for name, value in values.items() if value is not None}
    for name in ("samples", "best_of"):
        if given.get("greedy") and given.get(name, 1) > 1:
            parser.error(f"--greedy gives one colorization of each image: it goes without --{name}")
    if "rank" in given and given.get("best_of", 1) == 1:
        parser.error("--rank chooses the best of several: it goes with --best_of")
    try:
        SamplingOptions(**given)
    except ValueError as error:
        parser.error(f"--{error}")
    return given


def add_compute_options(parser: argparse.ArgumentParser) -> None:
    """Adds how the networks are computed."""
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the computation; auto is float32 on a CPU and bfloat16 elsewhere (auto)",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "xla", "pallas"),
        default="auto",
        help="what computes: XLA, or Pallas kernels for TPUs, which auto takes there in bfloat16 (auto)",
    )


def add_encoding_options(parser: argparse.ArgumentParser) -> None:
    """Adds the format of results and its options, the fields of `coltran_jax.images.encoding.Encoding`."""
    add = parser.add_argument
    add("--format", choices=list(FORMATS), default="png", help="of the results (png)")
    add("--quality", type=int, metavar="N", help="of jpg and webp, 1 to 100 (95 and 90)")
    add("--compression", type=int, metavar="N", help="of png, 0 to 9 (2): smaller files, slower, the same pixels")


def compute_options(args: argparse.Namespace):
    """Returns the `Compute` that the command line describes, on the devices at hand."""
    import jax

    from coltran_jax.nn.compute import compute_for

    return compute_for(jax.default_backend(), args.dtype, args.backend)


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Adds how the processes of a run find each other; `cluster` returns what joins them."""
    group = parser.add_argument_group("several processes, which JAX finds by itself on Cloud TPU, GKE and Slurm")
    group.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--num_processes", type=positive(int), metavar="N", help="number of processes")
    group.add_argument("--process_id", type=int, metavar="N", help="number of this process, from 0")
    group.add_argument(
        "--heartbeat_timeout",
        type=positive(int),
        metavar="SECONDS",
        help="without a sign of life, until a process counts as gone and the others end (100)",
    )


def cluster(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which this process has joined the others, as the command line says."""
    timeout = {} if args.heartbeat_timeout is None else {"heartbeat_timeout": args.heartbeat_timeout}
    return joined(*(getattr(args, name) for name in _CLUSTER), **timeout)


def check_distributed(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends with an error if cluster options are given without --distributed."""
    names = [name for name in (*_CLUSTER, "heartbeat_timeout") if getattr(args, name) is not None]
    if names and not args.distributed:
        parser.error(f"--{names[0]} goes with --distributed")


def positive(kind: type) -> Callable[[str], int | float]:
    """Returns an argparse type: a number of this kind above zero."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r}, expected a positive {'whole ' if kind is int else ''}number")
        return value

    return parse


def regular_expression(text: str) -> str:
    """Checks a regular expression; an argparse type."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a regular expression ({error})") from None
    return text


def any_path(text: str) -> pathlib.Path:
    """Parses a path, or an address of an object store; an argparse type."""
    try:
        return path_of(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def local_path(text: str) -> pathlib.Path:
    """Parses a path; an argparse type. What looks like an address would become a folder named "gs:"."""
    if is_address(text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a path; mount the bucket, as gcsfuse does, and give its path"
        )
    return pathlib.Path(text)


def count(text: str) -> int:
    """Parses a whole number, 0 or more; an argparse type."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number")
    return int(text)


def failing_in_one_line(main: Callable[..., int]) -> Callable[..., int]:
    """Wraps a command's `main`: errors of the user's making become one line on stderr and an exit status."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except (ValueError, OSError) as error:
            return _failed(error, 2)
        except Interrupted as error:
            print(error, file=sys.stderr)
            return 130
        except TrainingError as error:
            return _failed(error, 1)
        except RuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return _failed("the device's memory does not suffice; give a smaller --batch_size", 2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return wrapped


def _failed(error: object, status: int) -> int:
    print("error: " + one_line(error), file=sys.stderr)
    return status


def log_plainly() -> None:
    """Shows this package's messages as plain lines, and of other libraries' only what a user must read."""
    from absl import logging as absl_logging

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # TensorFlow reads checkpoints and writes TensorBoard's files here: no word about how it would compute.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # Orbax logs each error of its writers with a traceback, and then raises it, which becomes one line. It also warns
    # that a folder opened for reading is opened for reading.
    absl_logging.set_verbosity(absl_logging.FATAL)
    # JAX tells which kinds of devices this machine does not have.
    logging.getLogger("jax").setLevel(logging.WARNING)
    # Orbax raises the first error of its many writers; asyncio would print the others', a traceback each.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    # TensorStore reports to a writer of Orbax that has failed, and ended, before it.
    show = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            show(unraisable)

    sys.unraisablehook = show_others


def use_huge_pages() -> None:
    """Starts this program again with large arrays on huge pages, on Linux; the first thing that a command does.

    On a CPU each step takes its arrays from the system anew, and a fifth of the time would go to handing out small
    pages. The allocator (glibc's; others ignore this) is told so before a program starts or not at all. Whoever sets
    GLIBC_TUNABLES is left alone.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def enable_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR says otherwise."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(base) / "coltran_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
