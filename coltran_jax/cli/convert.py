"""Command line: checkpoints of the published TensorFlow release -> a bundle of weights."""

import argparse
import os

from coltran_jax.cli.shared import failing_in_one_line, local_path, log_plainly, parser_for


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_for("coltran convert", __doc__)
    parser.add_argument(
        "--reference",
        type=local_path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="checkpoint folders of the release, one a network, or one folder that holds colorizer/, color_upsampler/ "
        "and spatial_upsampler/",
    )
    parser.add_argument("--output", type=local_path, required=True, metavar="FILE", help="the bundle to write")
    parser.add_argument(
        "--config",
        type=local_path,
        metavar="FILE",
        help="configuration of the network (YAML or JSON, as the release's), where none lies beside its checkpoint",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    return parser.parse_args(argv)


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Converts; returns the exit status."""
    args = parse_args(argv)
    log_plainly()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from coltran_jax.checkpoints.release import convert

    for line in convert(args.reference, args.output, config_path=args.config, overwrite=args.overwrite):
        print(line)
    return 0
