"""Command line: the human test, a page that asks which of two images is colorized, and the scores of its answers."""

import argparse
import dataclasses
import json
import sys

from coltran_jax.cli.shared import count, failing_in_one_line, local_path, parser_for, positive

_MIN_CHECKS = "of the checks that a rater must get right"


def share(text: str) -> float:
    """Parses a share in 0..1; an argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a share between 0 and 1")
    return value


def _source(text: str):
    from coltran_jax.evaluation.colorized import Source

    return Source.parse(text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    from coltran_jax.human_study.scoring import MIN_CHECKS

    parser = parser_for("coltran study", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="write a study: a folder with a page, to open or to put on any web space")
    add = build.add_argument
    add("--truth", type=local_path, required=True, metavar="DIR", help="real images")
    add(
        "--colorized",
        type=_source,
        required=True,
        action="append",
        metavar="[MODEL=]DIR",
        help="NAME.png of each, or NAME-1.png ... of several seeds; may be given again for another model",
    )
    add("--output", type=local_path, required=True, metavar="DIR", help="of the study; made here")
    add("--seed", type=int, default=0, help="of choices, order and sides (0)")
    add("--seconds", type=positive(float), default=1.0, metavar="T", help="that a pair is shown (1)")
    add("--practice", type=count, default=5, metavar="N", help="pairs at the beginning that do not count (5)")
    add("--checks", type=count, default=5, metavar="N", help="pairs that only the inattentive get wrong (5)")
    add("--pairs", type=count, default=0, metavar="N", help="that a rater judges (0: one of each image)")
    add("--min_checks", type=share, default=MIN_CHECKS, metavar="SHARE", help=f"{_MIN_CHECKS} ({MIN_CHECKS})")
    add("--submit_url", default="", metavar="URL", help="where the page sends answers, as JSON (nowhere)")
    add("--completion_url", default="", metavar="URL", help="where a rater is led then, such as Prolific's (nowhere)")
    export = commands.add_parser("export", help="tasks for a crowdsourcing platform: a template and a table of pairs")
    add = export.add_argument
    add("study", type=local_path, metavar="STUDY", help="folder of study build")
    add("--output", type=local_path, required=True, metavar="DIR", help="for task.html, tasks.csv and key.json")
    add("--images_url", required=True, metavar="URL", help="address of the study's folder images")
    add("--tasks", type=count, required=True, metavar="N", help="to make, each for one rater or more")
    add("--pairs", type=count, default=20, metavar="N", help="of a task, checks not counted (20)")
    add("--checks", type=count, default=2, metavar="N", help="of a task, beside the pairs (2)")
    add("--seed", type=int, default=0, help="of order and sides (0)")
    score = commands.add_parser("score", help="fooling rates from answers")
    score.add_argument(
        "results",
        type=local_path,
        nargs="+",
        metavar="RESULTS",
        help="answers-*.json of the page, or *.csv of a platform",
    )
    score.add_argument("--key", type=local_path, metavar="FILE", help="key.json of study export, for *.csv of tasks")
    score.add_argument("--min_checks", type=share, metavar="SHARE", help=f"{_MIN_CHECKS} (as the study was built)")
    score.add_argument(
        "--mixed_effects",
        action="store_true",
        help="also rates without the effects of who saw which images",
    )
    score.add_argument("--published", action="store_true", help="also print the paper's rates")
    score.add_argument("--json", action="store_true", help="a line of JSON for each rate instead of a table")
    return parser.parse_args(argv)


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Builds or scores; returns the exit status."""
    args = parse_args(argv)
    return {"build": _build, "export": _export, "score": _score}[args.command](args)


def _build(args: argparse.Namespace) -> int:
    from coltran_jax.human_study.study import Options, build

    names = [field.name for field in dataclasses.fields(Options)]
    options = Options(**{name: getattr(args, name) for name in names})
    judged = build(args.truth, args.colorized, args.output, options)
    print(f"{judged} images to judge, {args.practice} for practice, {args.checks} checks: {args.output}/index.html")
    return 0


def _export(args: argparse.Namespace) -> int:
    from coltran_jax.human_study.crowd import Tasks, export

    export(args.study, args.output, args.images_url, Tasks(args.tasks, args.pairs, args.checks, args.seed))
    print(
        f"{args.tasks} tasks of {args.pairs + args.checks} pairs: {args.output}/task.html and tasks.csv, for the "
        "platform; key.json, to keep at home"
    )
    return 0


def _score(args: argparse.Namespace) -> int:
    from coltran_jax.evaluation.published import PUBLISHED_RATES
    from coltran_jax.human_study import effects
    from coltran_jax.human_study.crowd import read_table
    from coltran_jax.human_study.scoring import attentive, fooling_rates, read_results

    tables = [path for path in args.results if path.suffix == ".csv"]
    if args.key and not tables:
        raise ValueError("--key: goes with a table of results, *.csv")
    results = [read_results(path) for path in args.results if path not in tables]
    for path in tables:
        own, rejected = read_table(path, args.key)
        results += own
        for rater in rejected:
            print(f"left out: {rater!r}, an assignment that was rejected", file=sys.stderr)
    registered = sorted({result.min_checks for result in results})
    if args.min_checks is not None and registered != [args.min_checks]:
        listed = ", ".join(f"{value:g}" for value in registered)
        print(f"--min_checks={args.min_checks:g}: the study was built with {listed}", file=sys.stderr)
    kept, dropped = attentive(results, args.min_checks)
    for result in dropped:
        print(f"left out: {result.rater!r}, {result.checks[0]} of {result.checks[1]} checks right", file=sys.stderr)
    rates = fooling_rates(kept)
    found = effects.fit(kept) if args.mixed_effects else None
    if args.json:
        for rate in rates:
            print(json.dumps(dataclasses.asdict(rate)))
        if found:
            print(json.dumps({"mixed_effects": dataclasses.asdict(found)}))
        return 0
    width = max(len("model"), *(len(rate.model) for rate in rates))
    print(f"{'model':{width}}  {'seed':>6}  fooled %   +-   images  answers")
    for rate in rates:
        row = f"{rate.model:{width}}  {rate.seed or '-':>6}  {rate.percent:8.1f}  {rate.error:3.1f}"
        print(f"{row}  {rate.images:9}  {rate.answers:7}")
    print(f"{len(kept)} raters; standard errors by bootstrap over images")
    if args.published:
        for rate in PUBLISHED_RATES:
            print(f"published: ColTran, {rate.what}: {rate.percent:.1f} % ({rate.source})")
    if found:
        for rate in found.rates:
            print(
                f"{rate.model}: fools an average rater with an average image {rate.percent:.1f} % of times "
                f"({rate.low:.1f} to {rate.high:.1f})"
            )
        print(f"log-odds vary by {found.rater_spread:.2f} between raters, {found.image_spread:.2f} between images")
    return 0
