"""Command line: trains one trial of a sweep, by its number; what every engine that runs sweeps calls."""

import argparse
import json
import pathlib
import signal
import subprocess
import sys

from coltran_jax.cli.shared import failing_in_one_line, local_path, parser_for
from coltran_jax.errors import UsageError
from launch.trials import Trial, recorded

# The exit status of a trial that was asked to end before its last step, and saved: it wants to be started again.
UNFINISHED = 75

LOG = "log.txt"
FAILED = "failed.json"


def train(trial: Trial, workdir: pathlib.Path) -> int:
    """Trains a trial, or what is left of it; its output is added to log.txt in its folder.

    Returns:
        The exit status: 0 once its last step is saved, `UNFINISHED` if it was asked to end before, else the run's.
    """
    if trial.finished(workdir):
        return 0
    folder = workdir / trial.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILED).unlink(missing_ok=True)
    with open(folder / LOG, "a") as log:
        process = subprocess.Popen(trial.command(workdir), stdout=log, stderr=subprocess.STDOUT)
        # The run saves and ends when it is asked to; this process waits for it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: process.terminate())
        status = process.wait()
    if trial.finished(workdir):
        return 0
    if status == 0:
        return UNFINISHED
    (folder / FAILED).write_text(json.dumps({"exit_status": status}))
    return status


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_for("python -m launch.trial", __doc__)
    parser.add_argument("workdir", type=local_path, help="the sweep's")
    parser.add_argument("number", type=int, help="of the trial, from 0")
    return parser.parse_args(argv)


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Trains; returns the exit status."""
    args = parse_args(argv)
    trials = recorded(args.workdir)
    if not 0 <= args.number < len(trials):
        raise UsageError(f"trial {args.number}: the sweep in {args.workdir} has {len(trials)}, from 0")
    return train(trials[args.number], args.workdir)


if __name__ == "__main__":
    sys.exit(main())
