"""Command line: images -> colour images."""

import argparse
import dataclasses
import logging
import pathlib

from coltran_jax.cli.shared import (
    add_cluster_options,
    add_compute_options,
    add_encoding_options,
    add_sampling_options,
    any_path,
    check_distributed,
    cluster,
    compute_options,
    enable_compilation_cache,
    failing_in_one_line,
    local_path,
    parser_for,
    positive,
    sampling_options,
)
from coltran_jax.cluster import wait_for_all
from coltran_jax.files import digest_of
from coltran_jax.images.decoding import STANDARD_INPUT
from coltran_jax.images.encoding import Encoding
from coltran_jax.sampling.options import SamplingOptions


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_for("coltran colorize", __doc__)
    add = parser.add_argument
    add("paths", type=any_path, nargs="*", metavar="PATH", help="images, folders of images; - reads one image")
    add("--list", type=local_path, metavar="FILE", help="images, a path a line, instead of PATH")
    add("--output", type=any_path, required=True, metavar="DIR", help="folder for the results, NAME.png each")
    add("--weights", type=local_path, metavar="BUNDLE", help="of convert or export (mini, of the package)")
    add_sampling_options(parser)
    add(
        "--hints",
        type=local_path,
        metavar="FILE",
        help="known colours of one image, painted on transparency, or a .csv",
    )
    add(
        "--keep",
        type=local_path,
        metavar="MASK",
        help="of one image: keep its colours where this is black",
    )
    add("--batch_size", type=positive(int), metavar="N", help="colorizations at once over all devices")
    add("--name", metavar="NAME", help="of the results of the standard input, PATH - (stdin)")
    add("--square", action="store_true", help="the centre square at 256x256, exactly the release's output")
    add("--stages", action="store_true", help="also write NAME-coarse.png and NAME-fine.png, 64x64")
    add("--entropy", action="store_true", help="also write NAME-entropy.png: where colours were undecided, in bits")
    add("--grid", action="store_true", help="also write grid.png: gray, samples and, if in colour, the image")
    add_encoding_options(parser)
    add("--strip_metadata", action="store_true", help="leave out EXIF, GPS, XMP, resolution and text")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace files that exist")
    existing.add_argument("--skip_existing", action="store_true", help="keep results that exist: go on with a run")
    add("--pages", choices=("first", "all"), default="first", help="of files with several pages or frames (first)")
    add("--shard", type=_shard, metavar="I/N", help="share I, from 0, of N: for hosts that do not talk to each other")
    add("--allow_truncated", action="store_true", help="colorize files that end early, as far as they go")
    add_compute_options(parser)
    add("--distributed", action="store_true", help="share the images out among all processes")
    add_cluster_options(parser)
    args = parser.parse_args(argv)
    if bool(args.paths) == bool(args.list):
        parser.error("expected images or folders, PATH, or --list FILE; one of the two")
    if args.skip_existing and args.grid:
        parser.error("--grid shows all images of a run: it goes without --skip_existing")
    args.all_pages = args.pages == "all"
    if args.all_pages and any(str(path) in STANDARD_INPUT for path in args.paths):
        parser.error("--pages all reads files, not the standard input")
    if args.shard and (args.distributed or args.grid):
        parser.error(f"--shard goes without {'--distributed' if args.distributed else '--grid'}")
    args.encoding = Encoding(args.format, args.quality, args.compression)
    if args.distributed and args.grid:
        parser.error("--grid is one sheet of all images: it goes without --distributed")
    if args.name is not None:
        if not any(str(path) in STANDARD_INPUT for path in args.paths):
            parser.error("--name names the results of the standard input: it goes with PATH -")
        if pathlib.PurePath(args.name).name != args.name:
            parser.error(f"--name must be a file name without folders, got {args.name!r}")
    given = [f"--{name}" for name in ("hints", "keep") if getattr(args, name)]
    for flag, has in (("distributed", args.distributed), ("shard", args.shard), ("pages all", args.all_pages)):
        if given and has:
            parser.error(f"{given[0]} is of one image: it goes without --{flag}")
    if given and any(str(path) in STANDARD_INPUT for path in args.paths):
        parser.error(f"{given[0]} goes with a file, not with the standard input")
    if args.particles is not None and (args.greedy or not given):
        parser.error("--particles goes with --hints or --keep, and without --greedy")
    check_distributed(parser, args)
    args.sampling = sampling_options(parser, args)
    return args


def _shard(text: str) -> tuple[int, int]:
    number, _, total = text.partition("/")
    if not (number.isdigit() and total.isdigit() and int(number) < int(total)):
        raise argparse.ArgumentTypeError(f"{text!r}, expected I/N with I from 0 to N - 1")
    return int(number), int(total)


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Colorizes; returns the exit status."""
    args = parse_args(argv)
    logging.basicConfig(format="warning: %(message)s")
    enable_compilation_cache()
    from coltran_jax.planning import Options, paths_of, plan

    own = [field.name for field in dataclasses.fields(Options) if field.name != "sampling"]
    options = Options(**{name: getattr(args, name) for name in own}, sampling=SamplingOptions(**args.sampling))
    jobs, sheets, found = plan(args.paths or paths_of(args.list), options)
    if not args.distributed:
        own = {"manifest_name": f"colorize-{args.shard[0]}.jsonl"} if args.shard else {}
        return _colorize(args, options, jobs, sheets, found, **own)
    with cluster(args):
        import jax

        # Whoever writes first must not be in the way of those who still look whether files exist.
        wait_for_all("planned")
        index = jax.process_index()
        name = f"colorize-{index}.jsonl"
        status = _colorize(args, options, jobs[index :: jax.process_count()], sheets, found, manifest_name=name)
        wait_for_all("colorized")
    return status


def _colorize(args: argparse.Namespace, options, jobs, sheets, found, **manifest_name) -> int:
    from coltran_jax.colorize_files import colorize_files
    from coltran_jax.pipeline import MINI, load_pipeline

    pipeline = load_pipeline(args.weights or MINI, compute=compute_options(args))
    options = dataclasses.replace(options, sampling=dataclasses.replace(pipeline.options, **args.sampling))
    pipeline.check(options.sampling)
    recommended = {name: value for name, value in pipeline.recommended.items() if name not in args.sampling}
    if options.sampling.greedy:
        # The others say how colours are drawn.
        recommended = {name: value for name, value in recommended.items() if name == "guidance"}
    if recommended:
        print("recommended for these weights: " + " ".join(f"--{name} {value}" for name, value in recommended.items()))
    made_by = {"weights": digest_of(args.weights or MINI), "dtype": pipeline.compute.dtype.name}
    known = {name: digest_of(file) for name in ("hints", "keep") if (file := getattr(args, name))}
    made_by |= known | ({"particles": options.sampling.particles} if known else {})
    return colorize_files(pipeline, jobs, sheets, found, options, made_by=made_by, **manifest_name).status
