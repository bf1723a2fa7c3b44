"""Command line: trains a network, on one device or on every host of a pod slice."""

import argparse

from coltran_jax.cli.configuration import add_config, parse_with_config, read_config
from coltran_jax.cli.shared import (
    add_cluster_options,
    cluster,
    count,
    enable_compilation_cache,
    failing_in_one_line,
    local_path,
    log_plainly,
    parser_for,
)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = parser_for("coltran train", __doc__)
    add_config(parser)
    add = parser.add_argument
    add(
        "--workdir",
        type=local_path,
        required=True,
        metavar="DIR",
        help="for checkpoints and reports; a run there is resumed",
    )
    add("--init_from", type=local_path, metavar="BUNDLE", help="bundle whose weights a new run starts from")
    add(
        "--restore_step",
        type=count,
        metavar="N",
        help="go on from this checkpoint instead of the newest; those after it are removed",
    )
    add("--profile_step", type=count, metavar="N", help="profile five steps from this one on")
    add_cluster_options(parser)
    return parser


@failing_in_one_line
def main(argv: list[str]) -> int:
    """Trains; returns the exit status."""
    args, overrides = parse_with_config(parser(), argv)
    log_plainly()
    config = read_config(args.config, overrides)
    enable_compilation_cache()
    with cluster(args):
        from coltran_jax.training.loop import train

        train(
            config,
            args.workdir,
            init_from=args.init_from,
            profile_step=args.profile_step,
            restore_step=args.restore_step,
        )
    return 0
