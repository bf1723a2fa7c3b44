"""Command line: compares colorizations with true images, or the checkpoints of a run with the held-out set."""

import argparse
import contextlib
import dataclasses
import json
from typing import Any

from coltran_jax.cli.configuration import add_config, parse_with_config, read_config
from coltran_jax.cli.shared import (
    add_cluster_options,
    add_compute_options,
    add_sampling_options,
    check_distributed,
    cluster,
    compute_options,
    count,
    enable_compilation_cache,
    failing_in_one_line,
    local_path,
    log_plainly,
    parser_for,
    positive,
    regular_expression,
    sampling_options,
)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    from coltran_jax.evaluation.features import NAMES

    parser = parser_for("coltran evaluate", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    images = commands.add_parser("images", help="colorize images that are in colour, and compare")
    _add_images_options(images, NAMES)
    folders = commands.add_parser("folders", help="distances between the images of two folders, FID among them")
    folders.add_argument("folders", type=local_path, nargs=2, metavar="DIR", help="colorizations; real images")
    _add_features_options(folders, NAMES, required=True)
    compare = commands.add_parser("compare", help="two or more evaluations of the same images, by paired bootstrap")
    add = compare.add_argument
    add("reports", type=local_path, nargs="+", metavar="REPORT", help="folders of evaluate images --report")
    add(
        "--row",
        action="append",
        metavar="ROW",
        help="row of their tables (as trained); may be given again. All are compared with the first",
    )
    add("--metric", metavar="NAME", help="of --difference, as in the line of JSON")
    add(
        "--difference",
        type=positive(float),
        metavar="D",
        help="also say how many images show such a difference in --metric",
    )
    add("--page", type=local_path, metavar="FILE", help="also make a page, a leaderboard")
    run = commands.add_parser("run", help="bits per pixel of a training run's EMA parameters")
    add_config(run)
    add = run.add_argument
    add("--workdir", type=local_path, required=True, metavar="DIR", help="of the training run")
    add("--split", choices=("holdout", "test"), default="holdout", help="images to evaluate on (holdout)")
    which = run.add_mutually_exclusive_group()
    which.add_argument("--step", type=count, metavar="N", help="checkpoint to evaluate (the newest)")
    which.add_argument("--watch", action="store_true", help="evaluate each new checkpoint until the run's last step")
    add("--num_examples", type=count, default=0, metavar="N", help="images to evaluate on, 0 for all (0)")
    add("--marginal", action="store_true", help="first print the bits of two predictions that ignore the image")
    add_cluster_options(run)
    return parser


def _add_images_options(parser: argparse.ArgumentParser, feature_networks: tuple[str, ...]) -> None:
    from coltran_jax.evaluation.protocols import PROTOCOLS

    add = parser.add_argument
    add(
        "paths",
        type=local_path,
        nargs="+",
        metavar="PATH",
        help="images in colour, folders of them, imagenet2012 of TFDS",
    )
    add("--weights", type=local_path, metavar="BUNDLE", help="of convert or export (mini, of the package)")
    add_sampling_options(parser, without=("as_released", "particles"), defaults={"samples": 3})
    add(
        "--own_luminance",
        action="store_true",
        help="compare what colorize gives without --square: chroma on the image's own luminance",
    )
    add("--skip_released", action="store_true", help="leave out the row of samples as released: half of the drawing")
    add_compute_options(parser)
    add(
        "--colorized",
        action="append",
        default=[],
        metavar="MODEL=DIR",
        help="NAME.png, or NAME-1.png, NAME-2.png ..., that another colorizer made of all images; may be given again",
    )
    add("--protocol", choices=list(PROTOCOLS), default="own", help="which images, cut how, compared with which (own)")
    add("--list", type=local_path, metavar="FILE", help="names of the images to colorize, one a line")
    add("--reference_list", type=local_path, metavar="FILE", help="names of the images to compare with")
    add(
        "--group_pattern",
        type=regular_expression,
        default="",
        metavar="REGEX",
        help="also print means by group, which the first match in an image's name names",
    )
    add("--published", action="store_true", help="also print the published distances of this protocol")
    add("--skip_gray", action="store_true", help="leave out images without colours, and say how many")
    _add_features_options(parser, feature_networks, required=False)
    add("--lpips", action="store_true", help="also measure LPIPS, the distance to the truth by AlexNet's features")
    add("--lpips_weights", type=local_path, metavar="FILE", help="torchvision's AlexNet (downloaded)")
    add(
        "--statistics",
        type=local_path,
        metavar="FILE",
        help="the real images' features and their statistics; made if it is missing",
    )
    add(
        "--report",
        type=local_path,
        metavar="DIR",
        help="for a page with table, curves and images; an interrupted evaluation goes on from there",
    )
    add("--distributed", action="store_true", help="share the images out among all processes; needs --report")
    add_cluster_options(parser)


def _add_features_options(parser: argparse.ArgumentParser, names: tuple[str, ...], *, required: bool) -> None:
    parser.add_argument(
        "--features",
        choices=names,
        default="inception" if required else None,
        help=f"network whose features FID and other distances compare ({'inception' if required else 'none'})",
    )
    parser.add_argument(
        "--features_weights", type=local_path, metavar="FILE", help="its weights (downloaded, or of its package)"
    )


@failing_in_one_line
def main(argv: list[str]) -> int:
    """Evaluates a run, images or folders; returns the exit status."""
    built = parser()
    args, overrides = parse_with_config(built, argv)
    log_plainly()
    if args.command == "images":
        return _evaluate_images(built, args)
    if args.command == "compare":
        return _compare_reports(built, args)
    enable_compilation_cache()
    return _compare_folders(args) if args.command == "folders" else _evaluate_run(args, overrides)


def _evaluate_images(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Prints a table, and a line of JSON; with --report also makes a page."""
    from coltran_jax.evaluation import prepared, published
    from coltran_jax.evaluation.protocols import PROTOCOLS, select

    given = sampling_options(parser, args)
    if given.get("greedy"):
        given["samples"] = 1
    check_distributed(parser, args)
    protocol = PROTOCOLS[args.protocol]
    if args.published and not published.published_under(protocol.name):
        parser.error(f"--published: no published distance of the protocol {protocol.name} is known here")
    if args.skip_gray and protocol.fixes_images:
        parser.error(f"--skip_gray: the protocol {protocol.name} fixes its images, with the few that have no colours")
    if args.lpips_weights and not args.lpips:
        parser.error("--lpips_weights goes with --lpips")
    if args.distributed and not args.report:
        parser.error("--distributed takes --report=DIR, a folder that all processes share")
    with prepared.as_files(args.paths, protocol) as paths:
        return _evaluate_selected(args, given, select(protocol, paths, args.list, args.reference_list))


def _evaluate_selected(args: argparse.Namespace, given: dict[str, Any], selection: Any) -> int:
    from coltran_jax.evaluation import features, perceptual, published
    from coltran_jax.evaluation.protocols import check_readable, without_gray

    protocol = selection.protocol
    if args.skip_gray:
        selection, skipped = without_gray(selection)
        if skipped:
            named = ", ".join(skipped[:3]) + " ..." * (len(skipped) > 3)
            print(f"{len(skipped)} image{'s' * (len(skipped) != 1)} without colours left out: {named}")
    paths = [*selection.images.values(), *(selection.reference or {}).values()]
    check_readable(paths, colors=not protocol.fixes_images)
    wants_features = protocol.fixes_images or args.features or args.statistics or args.features_weights
    network = args.features or "inception"
    if wants_features:
        features.check(network, args.features_weights)
    if args.lpips:
        perceptual.check(args.lpips_weights)
    enable_compilation_cache()
    with cluster(args) if args.distributed else contextlib.nullcontext():
        result = _measured(args, selection, given, network if wants_features else None)
    if result:
        from coltran_jax.evaluation.summary import as_text

        print(as_text(result), end="")
        if args.published:
            print(published.as_text(protocol.name), end="")
        print(json.dumps(dataclasses.asdict(result)))
    return 0


def _measured(args: argparse.Namespace, selection: Any, given: dict[str, Any], network: str | None) -> Any:
    from tqdm import tqdm

    from coltran_jax.errors import Interrupted
    from coltran_jax.evaluation import features, perceptual
    from coltran_jax.evaluation.colorized import Source, fakes_of
    from coltran_jax.evaluation.comparison import Inputs, evaluate
    from coltran_jax.evaluation.measures import Draws
    from coltran_jax.pipeline import MINI, load_pipeline

    colorized = fakes_of(selection.images, [Source.parse(text) for text in args.colorized])
    bundle = args.weights or MINI
    pipeline = load_pipeline(bundle, compute=compute_options(args))
    loaded = features.load(network, args.features_weights) if network else None
    lpips = perceptual.load(args.lpips_weights) if args.lpips else None
    try:
        return evaluate(
            pipeline,
            Inputs(selection, colorized, loaded, lpips, args.statistics),
            Draws(dataclasses.replace(pipeline.options, **given), args.own_luminance, skip_released=args.skip_released),
            bundle,
            args.report,
            progress=lambda total: tqdm(total=total, unit="image", disable=None).update,
            group_pattern=args.group_pattern,
        )
    except KeyboardInterrupt:
        kept = f"; the same command goes on from what {args.report} has" if args.report else ", nothing was kept"
        raise Interrupted(f"interrupted{kept}") from None


def _compare_folders(args: argparse.Namespace) -> int:
    """Prints a line for people and one of JSON."""
    from coltran_jax.evaluation import features
    from coltran_jax.evaluation.comparison import compare_folders
    from coltran_jax.evaluation.summary import distance_notes

    one, other = args.folders
    distances, frame = compare_folders(one, other, lambda: features.load(args.features, args.features_weights))
    print("protocol folders")
    print("\n".join(distance_notes(frame)))
    print(f"{one} to {other}: {frame.line_of(distances)}")
    print(json.dumps({"protocol": "folders", "distances": distances, "frame": dataclasses.asdict(frame)}))
    return 0


def _compare_reports(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Prints tables and a line of JSON; with --page also makes a page."""
    from coltran_jax.evaluation import leaderboard, paired
    from coltran_jax.files import check_writable

    if (args.metric is None) != (args.difference is None):
        parser.error("--metric and --difference go together")
    if args.page:
        check_writable(args.page.absolute().parent)
    protocol, entries, truth = paired.read_entries(args.reports, args.row or ["as trained"])
    found = paired.compare(protocol, entries, truth)
    names = [own.metric for own in found.differences[0]]
    if args.metric and args.metric not in names:
        parser.error(f"--metric={args.metric}: expected one of {', '.join(names)}")
    print(paired.as_text(found, args.metric, args.difference), end="")
    print(json.dumps(dataclasses.asdict(found)))
    if args.page:
        leaderboard.write(args.page, entries, found)
    return 0


def _evaluate_run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Prints a line of JSON for each checkpoint."""
    config = read_config(args.config, overrides)
    from coltran_jax.networks.chain import COLORIZER

    if args.marginal and config.network != COLORIZER:
        raise ValueError(f"--marginal is about predicting coarse colours, the configuration is of the {config.network}")
    with cluster(args):
        from coltran_jax.training.validation import evaluate_checkpoints, simple_bits

        if args.marginal:
            print(json.dumps(simple_bits(config)), flush=True)
        results = evaluate_checkpoints(
            config,
            args.workdir,
            split=args.split,
            step=args.step,
            watch=args.watch,
            num_examples=args.num_examples,
        )
        for result in results:
            print(json.dumps(result), flush=True)
    return 0
