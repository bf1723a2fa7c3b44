"""The record of what a folder's images were colorized from, and how: `colorize.jsonl`.

Each run writes a line with its options, {"run": {...}}, and a line for each image as it is finished. Objects of a store
cannot be appended to: there a run writes a manifest of its own every half minute, which `merge` makes one of.
"""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from coltran_jax.errors import UsageError
from coltran_jax.files import is_remote, replacing

NAME = "colorize.jsonl"
_ALL = "colorize*.jsonl"
_SECS_A_PART = 30


class Manifest:
    """The manifest of an output folder, which a run appends to.

    Attributes:
        run: the options of the run, as far as they decide what is written.
    """

    def __init__(self, folder: pathlib.Path, run: Mapping[str, Any], *, name: str = NAME):
        """Reads what the folder has.

        Args:
            folder: of the results.
            run: options by name, of JSON's types.
            name: of the file; other files of the folder named "colorize*.jsonl" are read, too.
        """
        self.run = dict(run)
        self._folder, self._path = folder, folder / name
        # Lines that an object store has not got yet, and when it got the last.
        self._pending, self._sent = "", 0.0
        self._digest = hashlib.sha256(json.dumps(self.run, sort_keys=True).encode()).hexdigest()[:16]
        self._head = json.dumps({"run": self.run, "digest": self._digest}) + "\n"

    def check(self, existing: Iterable[pathlib.Path]) -> None:
        """Checks that files were made with the options of this run.

        Raises:
            UsageError: they were made with others, or it is not known how.
        """
        made, last = self._made()
        for path in existing:
            run = made.get(path.relative_to(self._folder).as_posix(), last)
            if run is None:
                raise UsageError(
                    f"{path} exists, but {self._path} does not tell how it was made; give --overwrite, or another "
                    "--output"
                )
            changed = [
                f"{key} {run.get(key)!r}, now {self.run.get(key)!r}"
                for key in sorted(run.keys() | self.run.keys())
                if run.get(key) != self.run.get(key)
            ]
            if changed:
                raise UsageError(
                    f"{path} was made with {'; '.join(changed)}; give the same options, --overwrite, or another "
                    "--output"
                )

    def begin(self) -> None:
        """Writes the line of the run."""
        if is_remote(self._path):
            self._send()
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        # A run that was killed may have left part of a line.
        cut = self._path.exists() and not self._path.read_text().endswith("\n")
        self._write("\n" * cut + self._head)

    def add(self, source: pathlib.Path, **fields: Any) -> None:
        """Appends the line of an image.

        Args:
            source: the file that it was read from.
            fields: what is to be told of it, of JSON's types; paths in "outputs" are made relative to the folder.
        """
        if "outputs" in fields:
            fields["outputs"] = [path.relative_to(self._folder).as_posix() for path in fields["outputs"]]
        line = {"input": str(source), **fields, "seed": self.run.get("seed"), "run": self._digest}
        self._write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Writes what an object store has not got yet."""
        if self._pending:
            self._send()

    def _send(self) -> None:
        """Writes the pending lines as a manifest of their own, whose name comes after that of the one before."""
        path = self._path.with_name(f"{self._path.stem}-{time.time_ns():x}.jsonl")
        with replacing(path) as file:
            file.write_text(self._head + self._pending)
        self._pending, self._sent = "", time.monotonic()

    def _write(self, text: str) -> None:
        if is_remote(self._path):
            self._pending += text
            if time.monotonic() - self._sent > _SECS_A_PART:
                self._send()
            return
        try:
            with self._path.open("a") as file:
                file.write(text)
        except OSError as error:
            raise OSError(f"{self._path} could not be written ({error.strerror or error})") from None

    def _made(self) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
        """The options by which each output was made, and those of the last run."""
        made: dict[str, dict[str, Any]] = {}
        last = None
        for path in sorted(self._folder.glob(_ALL)):
            runs: dict[str, dict[str, Any]] = {}
            for line in _lines(path):
                if isinstance(line.get("run"), dict):
                    last = runs[line.get("digest")] = line["run"]
                else:
                    made.update(dict.fromkeys(line.get("outputs", ()), runs.get(line.get("run"), last)))
        return made, last


def _lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The lines of a manifest, without what a run that was killed left of one."""
    for text in path.read_text().splitlines():
        try:
            yield json.loads(text)
        except ValueError:
            continue


def _source(line: dict[str, Any]) -> tuple[str, int | None]:
    """The file that a line is about, and its page where pages are told apart."""
    return line["input"], line.get("page")


@dataclasses.dataclass(frozen=True)
class Merged:
    """The result of `merge`.

    Attributes:
        path: of the manifest.
        parts: how many were merged.
        done: images that it lists as colorized.
        failures: errors of the other images.
    """

    path: pathlib.Path
    parts: int
    done: int
    failures: list[str]


def merge(folder: pathlib.Path) -> Merged:
    """Makes one manifest of all that a folder has, and removes the others.

    It has each run once, and each image once, as it was last colorized. An error counts only where no run colorized the
    image.

    Raises:
        UsageError: there is none.
    """
    paths = sorted(folder.glob(_ALL))
    if not paths:
        raise UsageError(f"{folder}: no manifest (colorize*.jsonl), expected the --output of colorize")
    runs: dict[str, dict[str, Any]] = {}
    done: dict[tuple[str, ...], dict[str, Any]] = {}
    failed: dict[tuple[str, int | None], dict[str, Any]] = {}
    for line in (line for path in paths for line in _lines(path)):
        if isinstance(line.get("run"), dict):
            runs[line.get("digest", "")] = line
        elif "outputs" in line:
            done[tuple(line["outputs"])] = line
        else:
            failed[_source(line)] = line
    colorized = {_source(line) for line in done.values()}
    failures = [line for source, line in failed.items() if source not in colorized]
    path = folder / NAME
    with replacing(path) as file:
        file.write_text("".join(json.dumps(line) + "\n" for line in [*runs.values(), *done.values(), *failures]))
    for part in paths:
        if part != path:
            part.unlink()
    return Merged(path, len(paths), len(done), [line["error"] for line in failures])
