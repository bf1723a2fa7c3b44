"""What the command lines have in common."""

import argparse
import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from coltran_jax.sampling.options import DECODERS, SamplingOptions, help_of


def parser_for(program: str, doc: str) -> argparse.ArgumentParser:
    """A parser that describes its program by a module's docstring."""
    return argparse.ArgumentParser(prog=program, description=doc.removeprefix("Command line: "), allow_abbrev=False)


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each field of `SamplingOptions`; `given_options` returns those that were given."""
    for field in dataclasses.fields(SamplingOptions):
        flag, kind = f"--{field.name}", type(field.default)
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=None, help=help_of(field.name))
        else:
            choices = DECODERS if field.name == "decoder" else None
            metavar = None if choices else {int: "N", float: "X"}[kind]
            parser.add_argument(flag, type=kind, choices=choices, metavar=metavar, help=help_of(field.name))


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that the command line names; for the others, what a bundle recommends may apply."""
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(SamplingOptions)}
    return {name: value for name, value in values.items() if value is not None}


def positive(kind: type) -> Callable[[str], int | float]:
    """An argparse type: a number of this kind above zero."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r}, expected a positive {'whole ' if kind is int else ''}number")
        return value

    return parse


def failing_in_one_line(main: Callable[..., int]) -> Callable[..., int]:
    """A face's `main`: errors of the user's making become one line on stderr and exit status 2."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except (ValueError, OSError) as error:
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            return 2
        except RuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print("error: the device's memory does not suffice; give a smaller --batch_size", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return wrapped


def use_huge_pages() -> None:
    """Starts this program again with large arrays on huge pages, on Linux; first thing in a face.

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
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
