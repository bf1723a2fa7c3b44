"""Command line: runs the trials of a sweep, or what is left of them, here or by an engine that queues them."""

import argparse
import json
import pathlib
import sys
from typing import Any

from coltran_jax.cli.shared import failing_in_one_line, parser_for
from coltran_jax.errors import UsageError
from launch import backends
from launch.trials import plan, record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_for("python -m launch.sweep", __doc__)
    add = parser.add_argument
    add("--sweep", type=pathlib.Path, required=True, metavar="FILE", help="such as configs/sweeps/conditioning.py")
    add("--workdir", type=pathlib.Path, required=True, metavar="DIR", help="folder of the sweep, VARIANT/seed_N in it")
    add("--backend", choices=sorted(backends.BACKENDS), default="local", help="(local)")
    add("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of all trials, such as data.path=PHOTOS")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="of the backend; docs/sweeps.md lists them")
    add("--dry_run", action="store_true", help="show what would be started or submitted, and stop")
    return parser.parse_args(argv)


def parse_pairs(flag: str, pairs: list[str]) -> dict[str, str]:
    """Texts "KEY=VALUE" as a dict.

    Raises:
        UsageError: one is not of that form.
    """
    for pair in pairs:
        if "=" not in pair.strip("="):
            raise UsageError(f"{flag} {pair}: expected KEY=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def parse_value(text: str) -> Any:
    """A number or truth value as JSON writes them, else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Runs or submits; returns the exit status, 1 where a trial failed."""
    args = parse_args(argv)
    overrides = {key: parse_value(text) for key, text in parse_pairs("--set", args.set).items()}
    backend = backends.BACKENDS[args.backend](parse_pairs("--options", args.options), args.dry_run)
    trials = plan(args.sweep, overrides)
    workdir = args.workdir.absolute()
    if args.backend != "print" and not args.dry_run:
        record(trials, workdir)
    left = [number for number, trial in enumerate(trials) if not trial.finished(workdir)]
    print(f"{len(trials)} trials, {len(trials) - len(left)} of them finished before", flush=True)
    return backend.run(trials, left, workdir)


if __name__ == "__main__":
    sys.exit(main())
