"""Command line: what the trials of a sweep have reached so far, as a table and a figure."""

import argparse
import csv
import dataclasses
import io
import json
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence

from coltran_jax.cli.shared import failing_in_one_line, local_path, parser_for
from coltran_jax.errors import UsageError
from coltran_jax.evaluation.tables import text_table
from coltran_jax.files import replacing, why_no_folder
from launch.trials import Trial, recorded

# Step -> what a trial has logged of it.
Metrics = dict[int, dict[str, float]]

_COLUMNS = ("variant", "seeds", "parameters", "bits", "spread", "to_base", "images_per_sec")
_TITLES = ("variant", "seeds", "parameters", "holdout bits", "spread", "to base", "images/s")


@dataclasses.dataclass(frozen=True)
class Row:
    """A variant, at the step that all are compared at.

    Attributes:
        variant: its name.
        seeds: trials that have reached the step, of how many.
        parameters: of the network.
        bits: holdout bits per pixel, the mean over seeds; None if no trial has reached the step.
        spread: the largest less the smallest over seeds; None for fewer than two.
        to_base: bits less those of the sweep's first variant.
        images_per_sec: the median while training.
    """

    variant: str
    seeds: str
    parameters: int
    bits: float | None
    spread: float | None
    to_base: float | None
    images_per_sec: float | None


def read_metrics(trial: Trial, workdir: pathlib.Path) -> Metrics:
    """Reads what the trial has logged; of a step that was done twice, the last."""
    path = workdir / trial.name / "metrics.jsonl"
    found: Metrics = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:
            # The last line of a run that was killed may be half written.
            continue
        found.setdefault(values.pop("step"), {}).update(values)
    return found


def holdout_curve(metrics: Metrics) -> dict[int, float]:
    """Step -> holdout bits per pixel."""
    return {step: metrics[step]["holdout/bits"] for step in sorted(metrics) if "holdout/bits" in metrics[step]}


def common_step(curves: Sequence[dict[int, float]]) -> int:
    """The last step at which every trial that has been evaluated at all has been evaluated.

    Raises:
        UsageError: there is none.
    """
    started = [set(curve) for curve in curves if curve]
    common = set.intersection(*started) if started else set()
    if not common:
        raise UsageError("no step yet at which all trials under way have been evaluated on the holdout")
    return max(common)


def table(trials: Sequence[Trial], logged: Mapping[str, Metrics]) -> tuple[int, list[Row]]:
    """The step of comparison and a row a variant, in the sweep's order; `logged` by the trials' names.

    Raises:
        UsageError: nothing to compare yet.
    """
    import jax

    from coltran_jax.networks.registry import parameter_shapes

    curves = {trial.name: holdout_curve(logged[trial.name]) for trial in trials}
    step = common_step(list(curves.values()))
    rows: list[Row] = []
    for variant in dict.fromkeys(trial.variant for trial in trials):
        own = [trial for trial in trials if trial.variant == variant]
        bits = [curves[trial.name][step] for trial in own if step in curves[trial.name]]
        speeds = [
            values["train/images_per_sec"]
            for trial in own
            for values in logged[trial.name].values()
            if "train/images_per_sec" in values
        ]
        mean = statistics.mean(bits) if bits else None
        base = rows[0].bits if rows else mean
        rows.append(
            Row(
                variant,
                f"{len(bits)} of {len(own)}",
                sum(x.size for x in jax.tree.leaves(parameter_shapes(own[0].run.model))),
                mean,
                max(bits) - min(bits) if len(bits) > 1 else None,
                None if mean is None or base is None else mean - base,
                statistics.median(speeds) if speeds else None,
            )
        )
    return step, rows


def _cells(row: Row) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        row.variant,
        row.seeds,
        f"{row.parameters:,}",
        number(row.bits, ".4f"),
        number(row.spread, ".4f"),
        number(row.to_base, "+.4f"),
        number(row.images_per_sec, ".1f"),
    ]


def as_markdown(step: int, rows: Sequence[Row]) -> str:
    """A table for documents."""
    lines = [f"Holdout bits per pixel at step {step:,}.", "", f"| {' | '.join(_TITLES)} |"]
    lines.append("|---|---|" + "---:|" * (len(_TITLES) - 2))
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def as_text(step: int, rows: Sequence[Row]) -> str:
    """A table for terminals."""
    lines = text_table([_TITLES, *map(_cells, rows)], left=2)
    return f"at step {step:,}\n" + "\n".join(lines) + "\n"


def as_csv(step: int, rows: Sequence[Row]) -> str:
    """A table for programs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *_COLUMNS])
    writer.writerows([step, *dataclasses.astuple(row)] for row in rows)
    return text.getvalue()


def draw(trials: Sequence[Trial], logged: Mapping[str, Metrics], path: pathlib.Path) -> None:
    """Holdout log-likelihood against steps, a curve a variant: the mean over seeds, shaded from least to most."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    variants = list(dict.fromkeys(trial.variant for trial in trials))
    colors = matplotlib.colormaps["tab20" if len(variants) > 10 else "tab10"]
    for i, variant in enumerate(variants):
        curves = [holdout_curve(logged[trial.name]) for trial in trials if trial.variant == variant]
        curves = [curve for curve in curves if curve]
        if not curves:
            continue
        steps = sorted(set.intersection(*map(set, curves)))
        values = [[-curve[step] for curve in curves] for step in steps]
        style = {"color": colors(i), "linewidth": 2.5 if i == 0 else 1.5}
        axes.plot(steps, [statistics.mean(seeds) for seeds in values], label=variant, marker=".", **style)
        axes.fill_between(steps, list(map(min, values)), list(map(max, values)), color=colors(i), alpha=0.15, lw=0)
    axes.set_xlabel("training step")
    axes.set_ylabel("holdout log-likelihood, bits per pixel")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_for("python -m launch.report", __doc__)
    parser.add_argument("workdir", type=local_path, help="the sweep's")
    parser.add_argument("--output", type=local_path, metavar="DIR", help="for report.md, .csv and .png (the workdir)")
    return parser.parse_args(argv)


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Writes the report and prints its table; returns the exit status."""
    args = parse_args(argv)
    output = args.output or args.workdir
    trials = recorded(args.workdir)
    if not output.is_dir():
        raise UsageError(f"{output}: {why_no_folder(output)} to write the report to")
    logged = {trial.name: read_metrics(trial, args.workdir) for trial in trials}
    step, rows = table(trials, logged)
    for name, text in (("report.md", as_markdown(step, rows)), ("report.csv", as_csv(step, rows))):
        with replacing(output / name) as temporary:
            temporary.write_text(text)
    with replacing(output / "report.png") as temporary:
        draw(trials, logged, temporary)
    print(as_text(step, rows), end="")
    finished = sum(trial.finished(args.workdir) for trial in trials)
    print(f"{finished} of {len(trials)} trials finished; wrote {output}/report.md, report.csv and report.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
