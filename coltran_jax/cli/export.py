"""Command line: the EMA parameters of training runs -> a bundle that colorize takes."""

import argparse
import functools

from coltran_jax.cli.configuration import add_config, parse_with_config, read_config
from coltran_jax.cli.shared import failing_in_one_line, local_path, log_plainly, parser_for
from coltran_jax.errors import UsageError
from coltran_jax.files import why_no_folder
from coltran_jax.networks.registry import NETWORKS
from coltran_jax.sampling.options import RECOMMENDED, help_of


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = parser_for("coltran export", __doc__)
    for name in NETWORKS:
        parser.add_argument(
            f"--{name}",
            type=local_path,
            metavar="WORKDIR",
            help="run to take it from, WORKDIR or WORKDIR@STEP, by default the best step by holdout bits; or a bundle",
        )
    parser.add_argument("--output", type=local_path, required=True, metavar="BUNDLE", help="the bundle to write")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="to store in (float32)")
    for name in RECOMMENDED:
        parser.add_argument(
            f"--{name}", type=float, metavar="X", help=f"recommend it to whoever samples: {help_of(name)}"
        )
    add_config(parser, "also count the colours of its training images, which --guidance needs: ")
    parser.add_argument("--overwrite", action="store_true", help="replace BUNDLE if it exists")
    return parser


@failing_in_one_line
def main(argv: list[str]) -> int:
    """Exports; returns the exit status."""
    args, overrides = parse_with_config(parser(), argv)
    workdirs = {name: getattr(args, name) for name in NETWORKS if getattr(args, name) is not None}
    if not workdirs:
        raise UsageError(f"nothing to export; give {', '.join(f'--{name}' for name in NETWORKS)}, or some of them")
    if args.output.exists() and not args.overwrite:
        raise UsageError(f"{args.output} exists; give --overwrite to replace it")
    if not args.output.parent.is_dir():
        raise UsageError(f"{args.output.parent}: {why_no_folder(args.output.parent)} to write the bundle to")
    config = read_config(args.config, overrides) if args.config else None
    import jax.numpy as jnp

    log_plainly()
    from coltran_jax.training.checkpoints import export

    recommended = {name: getattr(args, name) for name in RECOMMENDED if getattr(args, name) is not None}
    count = None
    if config:
        from coltran_jax.training.validation import gray_table

        count = functools.partial(gray_table, config)
    for line in export(workdirs, args.output, jnp.dtype(args.dtype), recommended, count):
        print(line)
    return 0
