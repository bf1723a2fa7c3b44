"""Files that appear whole or not at all, and folders that they can be written to; on disks and in object stores.

A path in an object store is a `UPath` of universal_pathlib, which has the methods of `pathlib.Path`. Functions here
take either; the annotation `pathlib.Path` stands for both.
"""

import contextlib
import hashlib
import itertools
import logging
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from coltran_jax.errors import UsageError, one_line

# What `tempfile` makes of the prefix and suffix in `replacing`.
_TEMPORARY = re.compile(r"\.(.{1,64})\.[a-z0-9_]{8}(\.[^.]*)?")


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_address(text: str) -> bool:
    """Returns whether a text is an address like gs://bucket/folder, and no path."""
    return bool(_ADDRESS.match(text))


def path_of(text: str) -> pathlib.Path:
    """Returns the path that a text names, on a disk or, for an address like gs://bucket/folder, in an object store.

    Raises:
        UsageError: an address of a kind that is not known, or that takes packages which are not installed.
    """
    if not is_address(text):
        return pathlib.Path(text)
    try:
        from upath import UPath
    except ImportError:
        raise UsageError(f"{text}: object stores take pip install 'coltran_jax[remote]'") from None
    try:
        path: Any = UPath(text)
        # The package of the store is imported here.
        path.fs  # noqa: B018
    except (ImportError, ValueError) as error:
        raise UsageError(f"{text}: {one_line(error)}") from None
    # Google's client tells of each failed attempt, with a traceback, what it raises in the end.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    return path


def is_remote(path: pathlib.Path) -> bool:
    """Returns whether a path is in an object store."""
    return not isinstance(path, pathlib.Path)


def existing(paths: Iterable[pathlib.Path], folder: pathlib.Path) -> set[pathlib.Path]:
    """Returns those of some paths below a folder that exist. An object store is asked once for all."""
    if not is_remote(folder):
        return {path for path in paths if path.exists()}
    store: Any = folder
    store.fs.invalidate_cache()
    there = set(store.fs.find(store.path))
    return {path for path in paths if path.path in there}  # type: ignore[attr-defined]


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary file to write to, which takes the place of `path` at the end, or is removed on any exception.

    It lies beside `path`, in a folder that is made if need be, and is renamed. For an object store it lies on this
    machine and is sent whole.

    Raises:
        OSError: it cannot be written.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as name:
            temporary = pathlib.Path(name) / f"file{path.suffix}"
            yield temporary
            store: Any = path
            try:
                store.fs.put_file(str(temporary), store.path)
            # Each store has exceptions of its own.
            except Exception as error:
                raise OSError(one_line(error)) from None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner can read; ask for what any new file gets.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(paths: Iterable[pathlib.Path]) -> None:
    """Removes what processes that were killed left of writing these files by `replacing`; none may write them now.

    In object stores they leave nothing.
    """
    names: dict[pathlib.Path, set[str]] = {}
    for path in itertools.filterfalse(is_remote, paths):
        names.setdefault(path.parent, set()).add(path.name[:64])
    for folder, own in names.items():
        for file in folder.iterdir() if folder.is_dir() else ():
            parts = _TEMPORARY.fullmatch(file.name)
            if parts and parts[1] in own:
                file.unlink(missing_ok=True)


def digest_of(path: pathlib.Path) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def check_writable(folder: pathlib.Path) -> None:
    """Looks whether files can be made in a folder, which may not exist yet; nothing stays behind.

    Raises:
        UsageError: they cannot.
    """
    if is_remote(folder):
        probe = folder / ".coltran_jax-probe"
        try:
            probe.write_bytes(b"")
            probe.unlink()
        # Each store has exceptions of its own.
        except Exception as error:
            why = "no such bucket" if isinstance(error, FileNotFoundError) else one_line(error)
            raise UsageError(f"{folder}: cannot be written to ({why})") from None
        return
    try:
        nearest = folder.absolute()
        while not nearest.exists():
            nearest = nearest.parent
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written to ({error.strerror})") from None


def why_no_folder(path: pathlib.Path) -> str:
    """Returns what is wrong with a path that should be a folder and is none, for error messages."""
    return "a file, not a folder" if path.exists() else "no such folder"
