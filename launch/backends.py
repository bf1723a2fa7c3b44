"""Engines that run the trials of a sweep: this machine, Slurm, Google Kubernetes Engine, or nobody (`print`).

Each is made from its options and refuses, before anything starts, options and machines that it cannot use.
"""

import concurrent.futures
import json
import os
import pathlib
import queue
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from coltran_jax.errors import UsageError
from launch import gke
from launch.trial import FAILED, LOG, UNFINISHED
from launch.trials import Trial

_ROOT = pathlib.Path(__file__).parent.parent
_LAST_LINES = 5


def _only(options: Mapping[str, str], known: Sequence[str]) -> None:
    for key in options:
        if key not in known:
            raise UsageError(f"--options {key}: expected {', '.join(known) or 'none'}")


def _needs(command: str, backend: str) -> None:
    if shutil.which(command) is None:
        raise UsageError(f"--backend={backend} needs the command {command}, which is not on this machine")


class Print:
    """Shows each trial's command, for any engine."""

    def __init__(self, options: Mapping[str, str], dry_run: bool):
        """Takes no options."""
        _only(options, ())

    def run(self, trials: Sequence[Trial], left: Sequence[int], workdir: pathlib.Path) -> int:
        """Prints; returns 0."""
        for number in left:
            print(shlex.join(trials[number].command(workdir, "python")))
        return 0


class Local:
    """One trial after another on a CPU, or one on each local accelerator at a time; each in its own process."""

    def __init__(self, options: Mapping[str, str], dry_run: bool):
        """Takes parallel=N, trials at a time (all accelerators, or 1)."""
        _only(options, ("parallel",))
        parallel = options.get("parallel", "0")
        if not parallel.isdigit():
            raise UsageError(f"--options parallel={parallel}: expected a number of trials")
        self._parallel, self._dry_run = int(parallel), dry_run

    def run(self, trials: Sequence[Trial], left: Sequence[int], workdir: pathlib.Path) -> int:
        """Trains until all have ended; returns 1 if some failed. SIGINT ends the trials under way, which save."""
        if self._dry_run:
            return Print({}, True).run(trials, left, workdir)
        slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        environments = _environments(self._parallel)
        for environment in environments:
            slots.put(environment)
        running: set[subprocess.Popen] = set()
        stopped = []

        def train(number: int) -> int | None:
            environment = slots.get()
            try:
                if stopped:
                    return None
                command = [sys.executable, "-m", "launch.trial", str(workdir), str(number)]
                print(f"{trials[number].name}: started", flush=True)
                process = subprocess.Popen(
                    command, cwd=_ROOT, env={**os.environ, **environment}, start_new_session=True
                )
                running.add(process)
                status = process.wait()
                running.discard(process)
            finally:
                slots.put(environment)
            what = {0: "finished", UNFINISHED: "saved before its end"}.get(status, f"failed, exit status {status}")
            print(f"{trials[number].name}: {what}", flush=True)
            return status

        def stop(*_):
            stopped.append(True)
            for process in list(running):
                process.terminate()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with concurrent.futures.ThreadPoolExecutor(len(environments)) as pool:
                statuses = list(pool.map(train, left))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        summarize(trials, workdir)
        if stopped:
            print("stopped; the same command goes on", flush=True)
            return 130
        return int(any(statuses))


def _environments(parallel: int) -> list[dict[str, str]]:
    """The environment of each trial that may run at the same time: a device of its own where there are several."""
    program = "import jax; print(jax.default_backend(), jax.local_device_count())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"JAX finds no device ({done.stderr.strip().splitlines()[-1]})")
    platform, count = done.stdout.split()[-2:]
    if platform == "cpu":
        return [{}] * max(1, parallel)
    if parallel > int(count):
        raise UsageError(f"--options parallel={parallel}: this machine has {count} {platform} devices")
    chosen = range(parallel or int(count))
    if platform == "gpu":
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = given.split(",") if given else [str(i) for i in chosen]
        return [{"CUDA_VISIBLE_DEVICES": names[i]} for i in chosen]
    one = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
    return [{**one, "TPU_VISIBLE_CHIPS": str(i)} for i in chosen]


def summarize(trials: Sequence[Trial], workdir: pathlib.Path) -> None:
    """Prints how many trials are finished and, of each failed one, the last lines of its log."""
    finished = [trial for trial in trials if trial.finished(workdir)]
    failed = [trial for trial in trials if (workdir / trial.name / FAILED).exists()]
    print(f"{len(finished)} of {len(trials)} trials finished, {len(failed)} failed", flush=True)
    for trial in failed:
        folder = workdir / trial.name
        status = json.loads((folder / FAILED).read_text())["exit_status"]
        print(f"\n{trial.name} failed, exit status {status}; the end of {folder / LOG}:")
        lines = (folder / LOG).read_text(errors="replace").splitlines()
        print("\n".join(f"    {line}" for line in lines[-_LAST_LINES:]), flush=True)


class Slurm:
    """A job array, a task a trial; Slurm places, queues and starts again."""

    def __init__(self, options: Mapping[str, str], dry_run: bool):
        """Takes any long option of sbatch, such as partition=gpu gres=gpu:1 time=12:00:00."""
        self._options, self._dry_run = dict(options), dry_run
        if not dry_run:
            _needs("sbatch", "slurm")

    def run(self, trials: Sequence[Trial], left: Sequence[int], workdir: pathlib.Path) -> int:
        """Submits what is not finished; returns 0."""
        if not left:
            return 0
        logs = workdir / "slurm"
        command = [
            "sbatch",
            f"--array={','.join(map(str, left))}",
            f"--job-name=coltran-{workdir.name}",
            # A second submission waits for the first, and finds its trials finished.
            "--dependency=singleton",
            f"--output={logs}/%A_%a.txt",
            f"--chdir={_ROOT}",
            *(f"--{key}={value}" for key, value in self._options.items()),
            str(_ROOT / "launch" / "slurm_trial.sbatch"),
            str(workdir),
        ]
        print(shlex.join(command), flush=True)
        if self._dry_run:
            return 0
        logs.mkdir(exist_ok=True)
        environment = {**os.environ, "COLTRAN_PYTHON": sys.executable}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise UsageError(f"sbatch refused: {done.stderr.strip()}")
        print(done.stdout.strip())
        return 0


class Gke:
    """JobSets on Google Kubernetes Engine, a TPU slice a trial; see `launch.gke`."""

    def __init__(self, options: Mapping[str, str], dry_run: bool):
        """Takes the options of `launch.gke`: image=, topology=, bucket= and others."""
        self._options, self._dry_run = gke.check_options(options), dry_run
        if not dry_run:
            _needs("kubectl", "gke")

    def run(self, trials: Sequence[Trial], left: Sequence[int], workdir: pathlib.Path) -> int:
        """Writes a manifest a trial and applies those that are not finished; returns 0.

        In the run, the bucket is the parent of the sweep's folder: what trials save appears in `workdir` where that
        is a folder of the same bucket, mounted here.
        """
        inside = pathlib.Path("/mnt/bucket") / workdir.name
        manifests = {}
        for number in left:
            trial = trials[number]
            name = f"{workdir.name}-{trial.variant}-{trial.seed}"
            manifests[name] = gke.manifest(name, trial.command(inside, "python"), self._options)
        text = "---\n".join(manifests.values())
        if self._dry_run or not manifests:
            print(text, end="")
            return 0
        folder = workdir / "gke"
        folder.mkdir(exist_ok=True)
        for name, manifest in manifests.items():
            (folder / f"{name}.yaml").write_text(manifest)
        done = subprocess.run(["kubectl", "apply", "-f", "-"], input=text, capture_output=True, text=True)
        if done.returncode:
            raise UsageError(f"kubectl refused: {done.stderr.strip()}")
        print(done.stdout.strip())
        return 0


BACKENDS = {"gke": Gke, "local": Local, "print": Print, "slurm": Slurm}
