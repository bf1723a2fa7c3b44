"""Files that appear whole or not at all, and folders that they can be written to."""

import contextlib
import hashlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator

from coltran_jax.errors import UsageError

# What `tempfile` makes of the prefix and suffix in `replacing`.
_TEMPORARY = re.compile(r"\.(.{1,64})\.[a-z0-9_]{8}(\.[^.]*)?")


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary file beside `path` to write to, renamed to `path` at the end, or removed on any exception."""
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
    """Removes what processes that were killed left of writing these files by `replacing`; none may write them now."""
    names: dict[pathlib.Path, set[str]] = {}
    for path in paths:
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
    """Makes a folder and looks whether files can be made in it.

    Raises:
        UsageError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written to ({error.strerror})") from None


def why_no_folder(path: pathlib.Path) -> str:
    """Returns what is wrong with a path that should be a folder and is none, for error messages."""
    return "a file, not a folder" if path.exists() else "no such folder"
