"""Command line: the human test, a page that asks which of two images is colorized, and the scores of its answers."""

import argparse
import dataclasses
import json
import sys

from coltran_jax.cli.shared import count, failing_in_one_line, local_path, parser_for, positive


def _source(text: str):
    from coltran_jax.evaluation.colorized import Source

    return Source.parse(text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
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
    score = commands.add_parser("score", help="fooling rates from files that the page downloads")
    score.add_argument("results", type=local_path, nargs="+", metavar="RESULTS", help="answers-*.json")
    score.add_argument(
        "--min_checks", type=float, default=0.8, metavar="SHARE", help="of checks that a rater must get right (0.8)"
    )
    score.add_argument("--json", action="store_true", help="a line of JSON for each rate instead of a table")
    return parser.parse_args(argv)


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Builds or scores; returns the exit status."""
    args = parse_args(argv)
    return _build(args) if args.command == "build" else _score(args)


def _build(args: argparse.Namespace) -> int:
    from coltran_jax.human_study.study import Options, build

    options = Options(args.seed, args.seconds, args.practice, args.checks, args.pairs)
    judged = build(args.truth, args.colorized, args.output, options)
    print(f"{judged} images to judge, {args.practice} for practice, {args.checks} checks: {args.output}/index.html")
    return 0


def _score(args: argparse.Namespace) -> int:
    from coltran_jax.human_study.scoring import attentive, fooling_rates, read_results

    results = [read_results(path) for path in args.results]
    kept, dropped = attentive(results, args.min_checks)
    for result in dropped:
        print(f"left out: {result.rater!r}, {result.checks[0]} of {result.checks[1]} checks right", file=sys.stderr)
    rates = fooling_rates(kept)
    if args.json:
        for rate in rates:
            print(json.dumps(dataclasses.asdict(rate)))
        return 0
    width = max(len("model"), *(len(rate.model) for rate in rates))
    print(f"{'model':{width}}  {'seed':>6}  fooled %   +-   images  answers")
    for rate in rates:
        row = f"{rate.model:{width}}  {rate.seed or '-':>6}  {rate.percent:8.1f}  {rate.error:3.1f}"
        print(f"{row}  {rate.images:9}  {rate.answers:7}")
    print(f"{len(kept)} raters; standard errors by bootstrap over images")
    return 0
