"""Command line: runs the trials of a sweep, or what is left of them, here or by an engine that queues them.

--config.FIELD=VALUE overrides a field in all trials, such as --config.data.path=PHOTOS.
"""

import argparse
import json
import sys
from typing import Any

from coltran_jax.cli.configuration import split_overrides
from coltran_jax.cli.shared import failing_in_one_line, local_path, parser_for
from coltran_jax.errors import UsageError
from launch import backends
from launch.trials import plan, record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_for("python -m launch.sweep", __doc__)
    add = parser.add_argument
    add("--sweep", type=local_path, required=True, metavar="FILE", help="such as configs/sweeps/conditioning.py")
    add("--workdir", type=local_path, required=True, metavar="DIR", help="folder of the sweep, VARIANT/seed_N in it")
    add("--backend", choices=sorted(backends.BACKENDS), default="local", help="(local)")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="of the backend; docs/sweeps.md lists them")
    add("--dry_run", action="store_true", help="show what would be started or submitted, and stop")
    words, rest = split_overrides(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(rest)
    pairs = parse_pairs("--config.", [word.removeprefix("--config.") for word in words])
    args.overrides = {field: parse_value(text) for field, text in pairs.items()}
    return args


def parse_pairs(flag: str, pairs: list[str]) -> dict[str, str]:
    """Parses texts "KEY=VALUE".

    Raises:
        UsageError: one is not of that form.
    """
    for pair in pairs:
        if "=" not in pair.strip("="):
            raise UsageError(f"{flag}{pair}: expected {flag}KEY=VALUE")
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
    backend = backends.BACKENDS[args.backend](parse_pairs("--options ", args.options), args.dry_run)
    trials = plan(args.sweep, args.overrides)
    workdir = args.workdir.absolute()
    if args.backend != "print" and not args.dry_run:
        record(trials, workdir)
    left = [number for number, trial in enumerate(trials) if not trial.finished(workdir)]
    print(f"{len(trials)} trials, {len(trials) - len(left)} of them finished before", flush=True)
    return backend.run(trials, left, workdir)


if __name__ == "__main__":
    sys.exit(main())
