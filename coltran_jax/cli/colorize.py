"""Command line: pictures -> colour pictures."""

import argparse
import dataclasses
import pathlib
import sys

from coltran_jax.cli.shared import (
    add_sampling_options,
    enable_compilation_cache,
    failing_in_one_line,
    given_options,
    parser_for,
    positive,
    use_huge_pages,
)
from coltran_jax.cluster import join_cluster, wait_for_all
from coltran_jax.images.decoding import STANDARD_INPUT
from coltran_jax.sampling.options import SamplingOptions


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_for("python -m coltran_jax colorize", __doc__)
    add = parser.add_argument
    add("paths", type=pathlib.Path, nargs="+", metavar="PATH", help="images, folders of images; - reads one image")
    add("--output", type=pathlib.Path, required=True, metavar="DIR", help="folder for the results, NAME.png each")
    add("--weights", type=pathlib.Path, metavar="BUNDLE", help="of convert or export (mini, of the package)")
    add_sampling_options(parser)
    add("--batch_size", type=positive(int), metavar="N", help="colorizations at once over all devices")
    add("--name", metavar="NAME", help="of the results of the standard input, PATH - (stdin)")
    add("--square", action="store_true", help="the centre square at 256x256, exactly the release's output")
    add("--stages", action="store_true", help="also write NAME-coarse.png and NAME-fine.png, 64x64")
    add("--grid", action="store_true", help="also write grid.png: gray, samples and, if in colour, the picture")
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--allow_truncated", action="store_true", help="colorize files that end early, as far as they go")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in (float32)")
    add("--kernels", choices=("xla", "pallas"), default="xla", help="that compute; pallas on TPUs only (xla)")
    add("--distributed", action="store_true", help="share the pictures out among the processes of a cluster")
    add("--coordinator_address", metavar="HOST:PORT", help="of process 0, where the cluster is not found by itself")
    add("--num_processes", type=positive(int), metavar="N", help="processes of the cluster")
    add("--process_id", type=int, metavar="N", help="number of this process")
    args = parser.parse_args(argv)
    if args.distributed and args.grid:
        parser.error("--grid is one sheet of all pictures: it goes without --distributed")
    if args.name is not None:
        if not any(str(path) in STANDARD_INPUT for path in args.paths):
            parser.error("--name names the results of the standard input: it goes with PATH -")
        if pathlib.PurePath(args.name).name != args.name:
            parser.error(f"--name must be a file name without folders, got {args.name!r}")
    cluster = (args.coordinator_address, args.num_processes, args.process_id)
    if not args.distributed and any(value is not None for value in cluster):
        parser.error("--coordinator_address, --num_processes and --process_id go with --distributed")
    if args.greedy and (args.samples or 1) > 1:
        parser.error("--greedy gives one picture: it goes without --samples")
    try:
        args.sampling = given_options(args)
        SamplingOptions(**args.sampling)
    except ValueError as error:
        parser.error(f"--{error}")
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

    own = [field.name for field in dataclasses.fields(Options) if field.name != "sampling"]
    options = Options(**{name: getattr(args, name) for name in own}, sampling=SamplingOptions(**args.sampling))
    jobs, sheets, found = plan(args.paths, options)
    if args.distributed:
        join_cluster(args.coordinator_address, args.num_processes, args.process_id)
        # Whoever writes first must not be in the way of those who still look whether files exist.
        wait_for_all("planned")
        jobs = jobs[jax.process_index() :: jax.process_count()]
    pipeline = load_pipeline(args.weights or MINI, dtype=jnp.dtype(args.dtype), kernels=args.kernels)
    options = dataclasses.replace(options, sampling=dataclasses.replace(pipeline.options, **args.sampling))
    recommended = {name: value for name, value in pipeline.recommended.items() if name not in args.sampling}
    if recommended and not args.greedy:
        print("recommended for these weights: " + " ".join(f"--{name} {value}" for name, value in recommended.items()))
    status = colorize_files(pipeline, jobs, sheets, found, options)
    if args.distributed:
        wait_for_all("colorized")
    return status


if __name__ == "__main__":
    use_huge_pages()
    sys.exit(main())
