"""Command line: the manifests that several processes wrote into one folder of colour images -> one, colorize.jsonl."""

import argparse
import sys

from coltran_jax import manifest
from coltran_jax.cli.shared import any_path, failing_in_one_line, parser_for


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_for("coltran merge", __doc__)
    parser.add_argument(
        "folder",
        type=any_path,
        metavar="FOLDER",
        help="the --output of processes of `colorize` that have all ended",
    )
    return parser.parse_args(argv)


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Merges; returns the exit status, 1 where images failed."""
    args = parse_args(argv)
    merged = manifest.merge(args.folder)
    print(f"{merged.path}: {merged.done} colorized, {len(merged.failures)} failed, by {merged.parts} manifests")
    for failure in merged.failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if merged.failures else 0
