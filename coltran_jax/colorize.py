"""Command line: pictures -> colour pictures."""

import argparse
import dataclasses
import pathlib
import sys

from coltran_jax.faces import (
    enable_compilation_cache,
    failing_in_one_line,
    join_cluster,
    parser_for,
    positive,
    use_huge_pages,
    wait_for_all,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_for("python -m coltran_jax.colorize", __doc__)
    add = parser.add_argument
    add("paths", type=pathlib.Path, nargs="+", metavar="PATH", help="pictures, and folders of pictures")
    add("--output", type=pathlib.Path, required=True, metavar="DIR", help="folder for the results, NAME.png each")
    add("--weights", type=pathlib.Path, metavar="BUNDLE", help="of convert or export (mini, of the package)")
    add("--samples", type=positive(int), default=1, metavar="N", help="different colorizations of each picture (1)")
    add("--seed", type=int, default=0, help="of the draws (0)")
    add("--temperature", type=positive(float), default=1.0, help="below one, more probable colours (1.0)")
    add("--greedy", action="store_true", help="the most probable colour of every pixel, no draws")
    add("--batch_size", type=positive(int), metavar="N", help="colorizations at once over all devices")
    add("--square", action="store_true", help="the centre square at 256x256, exactly the release's output")
    add("--stages", action="store_true", help="also write NAME-coarse.png and NAME-fine.png, 64x64")
    add("--grid", action="store_true", help="also write grid.png: gray, samples and, if in colour, the picture")
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--as_released", action="store_true", help="sample as the published release does, not as trained")
    add("--decoder", choices=("sequential", "fixed_point"), default="sequential", help="way to a row (sequential)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in (float32)")
    add("--kernels", choices=("xla", "pallas"), default="xla", help="that compute; pallas on TPUs only (xla)")
    add("--distributed", action="store_true", help="share the pictures out among the processes of a cluster")
    add("--coordinator_address", metavar="HOST:PORT", help="of process 0, where the cluster is not found by itself")
    add("--num_processes", type=positive(int), metavar="N", help="processes of the cluster")
    add("--process_id", type=int, metavar="N", help="number of this process")
    args = parser.parse_args(argv)
    if args.distributed and args.grid:
        parser.error("--grid is one sheet of all pictures: it goes without --distributed")
    cluster = (args.coordinator_address, args.num_processes, args.process_id)
    if not args.distributed and any(value is not None for value in cluster):
        parser.error("--coordinator_address, --num_processes and --process_id go with --distributed")
    if args.greedy and args.samples > 1:
        parser.error("--greedy gives one picture: it goes without --samples")
    return args


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Colorizes; returns the exit status."""
    args = parse_args(argv)
    enable_compilation_cache()
    import jax
    import jax.numpy as jnp

    from coltran_jax.colorize_files import Options, colorize_files, plan
    from coltran_jax.pipeline import MINI, load_pipeline

    options = Options(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Options)})
    jobs, sheets, found = plan(args.paths, options)
    if args.distributed:
        join_cluster(args.coordinator_address, args.num_processes, args.process_id)
        # Whoever writes first must not be in the way of those who still look whether files exist.
        wait_for_all("planned")
        jobs = jobs[jax.process_index() :: jax.process_count()]
    pipeline = load_pipeline(args.weights or MINI, dtype=jnp.dtype(args.dtype), kernels=args.kernels)
    status = colorize_files(pipeline, jobs, sheets, found, options)
    if args.distributed:
        wait_for_all("colorized")
    return status


if __name__ == "__main__":
    use_huge_pages()
    sys.exit(main())
