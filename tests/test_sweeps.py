"""Sweeps and their reports, as a user runs them."""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from helpers import ROOT, start
from PIL import Image
from test_training import tiny_run

from coltran_jax import config as configs
from coltran_jax.data.config import DataConfig
from launch import report, sweep
from launch.trials import plan

CONFIG = """
import json
from ml_collections import ConfigDict
from coltran_jax.training.config import from_dict
from coltran_jax.training.variants import choose
VARIANTS = {{"plain": ("as it is", {{}}), "wide": ("a wider MLP", {{"model.ff_size": 16}})}}
def get_config(variant="plain"):
    return choose(from_dict(json.loads('''{}''')), VARIANTS, variant)
"""


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    """A tiny run on a folder of tiny images."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "images" / f"{number}.png")
    data = DataConfig(dataset="folder", path=str(folder / "images"), holdout_fraction=0.3, num_threads=1)
    intervals = {"save_every_steps": 0, "eval_every_steps": 2, "log_images_every_steps": 0, "log_every_steps": 2}
    config = tiny_run("color_upsampler", data=data, **{**intervals, "max_train_steps": 4})
    (folder / "config.py").write_text(CONFIG.format(json.dumps(configs.to_dict(config))))
    return folder / "config.py"


def sweep_file(tmp_path, *lines):
    path = tmp_path / "a_sweep.py"
    body = "\n".join(f"    yield Variant({line})" for line in lines)
    path.write_text(f"from launch.trials import Variant\ndef get_sweep():\n{body}\n")
    return path


@pytest.mark.slow
def test_a_failed_trial_is_shown_and_stops_no_other(config_path, tmp_path, capsys):
    file = sweep_file(
        tmp_path,
        f"'bad', '{config_path}', {{'optimizer.learning_rate': 1e30}}",
        f"'wide', '{config_path}:wide', seeds=(3,)",
    )
    process = start(
        "launch.sweep",
        "--sweep",
        file,
        "--workdir",
        tmp_path / "run",
        "--options",
        "parallel=2",
        stderr=subprocess.STDOUT,
    )
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    assert "1 of 2 trials finished, 1 failed" in output
    assert "bad/seed_0 failed, exit status 1; the end of" in output
    assert "error: step 2: loss or gradient is not finite" in output
    assert (tmp_path / "run" / "wide" / "seed_3" / "checkpoints" / "4").is_dir()
    saved = (tmp_path / "run" / "wide" / "seed_3" / "log.txt").read_text()
    # Once more: what is finished stays as it is, and is not even looked at by the engine.
    assert sweep.main(["--sweep", str(file), "--workdir", str(tmp_path / "run"), "--backend", "print"]) == 0
    printed = capsys.readouterr().out
    assert "2 trials, 1 of them finished before" in printed
    assert "bad/seed_0" in printed
    assert "wide/seed_3" not in printed
    assert (tmp_path / "run" / "wide" / "seed_3" / "log.txt").read_text() == saved
    assert report.main([str(tmp_path / "run")]) == 0
    assert "1 of 2 trials finished" in capsys.readouterr().out
    assert Image.open(tmp_path / "run" / "report.png").size == (1200, 750)


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on(config_path, tmp_path):
    file = sweep_file(tmp_path, f"'long', '{config_path}', {{'max_train_steps': 400, 'eval_every_steps': 0}}")
    arguments = ("--sweep", file, "--workdir", tmp_path / "run")
    folder = tmp_path / "run" / "long" / "seed_0"
    process = start("launch.sweep", *arguments, stderr=subprocess.STDOUT)
    while not ((folder / "metrics.jsonl").exists() and "train" in (folder / "metrics.jsonl").read_text()):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130, output
    assert "long/seed_0: saved before its end" in output
    assert "the same command goes on" in output
    process = start("launch.sweep", *arguments, stderr=subprocess.STDOUT)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert "1 of 1 trials finished, 0 failed" in output
    assert "resumed from step" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_the_projects_own_sweeps_can_be_planned(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    trials = plan(path, {})
    assert {trial.seed for trial in trials} == {0, 1}
    assert len({json.dumps(trial.resolved, sort_keys=True) for trial in trials}) == len(trials)


def fails(capsys, *args):
    assert sweep.main([str(arg) for arg in args]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["'a', 'CONFIG'", "'a', 'CONFIG:wide'"], "two trials are called a/seed_0"),
        (["'a', 'CONFIG', {'model.hiden_size': 3}"], "a: the configuration has no field model.hiden_size"),
        (["'a', 'CONFIG', {'batch_size': 'many'}"], "a: batch_size is 'many', expected int"),
        (["'a', 'CONFIG:narrow'"], "a: no variant 'narrow', expected one of: plain"),
        (["'a', 'none.py'"], "a: none.py: no such configuration file"),
        (["'a/b', 'CONFIG'"], "'a/b' is no name for a variant"),
        (["'a', 'CONFIG', seeds=()"], "yields no trial"),
    ],
)
def test_impossible_sweeps_are_refused_before_anything_starts(config_path, tmp_path, capsys, lines, message):
    file = sweep_file(tmp_path, *(line.replace("CONFIG", str(config_path)) for line in lines))
    assert message in fails(capsys, "--sweep", file, "--workdir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_impossible_options_are_refused_before_anything_starts(config_path, tmp_path, capsys, monkeypatch):
    file = sweep_file(tmp_path, f"'a', '{config_path}'")
    arguments = ["--sweep", file, "--workdir", tmp_path / "run"]
    monkeypatch.setenv("PATH", "")
    assert "needs the command sbatch" in fails(capsys, *arguments, "--backend", "slurm")
    assert "--options gpus: expected parallel" in fails(capsys, *arguments, "--options", "gpus=2")
    assert "--config.batch: expected --config.KEY=VALUE" in fails(capsys, *arguments, "--config.batch")
    assert "no such file" in fails(capsys, "--sweep", tmp_path / "none.py", "--workdir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_another_sweep_is_refused(config_path, tmp_path, capsys):
    def submit(*lines):
        file = sweep_file(tmp_path, *lines)
        return ["--sweep", file, "--workdir", tmp_path / "run", "--backend", "slurm", "--dry_run"]

    from launch.trials import record

    first = submit(f"'a', '{config_path}'")
    record(plan(first[1], {}), tmp_path / "run")
    record(plan(first[1], {"data.path": "/elsewhere"}), tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds another sweep \(a/seed_0: model.ff_size 8 -> 16\)"):
        record(plan(submit(f"'a', '{config_path}:wide'")[1], {}), tmp_path / "run")
    with pytest.raises(ValueError, match="holds another sweep, with a trial a/seed_0"):
        record(plan(submit(f"'b', '{config_path}'")[1], {}), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(ValueError, match="holds something else than a sweep"):
        record(plan(first[1], {}), tmp_path / "other")


def test_slurm_takes_the_unfinished_trials_as_an_array(config_path, tmp_path, capsys):
    file = sweep_file(tmp_path, f"'a', '{config_path}', seeds=(0, 1)", f"'b', '{config_path}:wide', seeds=(0, 1)")
    (tmp_path / "run" / "b" / "seed_0" / "checkpoints" / "4").mkdir(parents=True)
    options = ["--backend", "slurm", "--dry_run", "--options", "partition=gpu", "gres=gpu:1"]
    assert sweep.main(["--sweep", str(file), "--workdir", str(tmp_path / "run"), *options]) == 0
    printed = capsys.readouterr().out
    # Seeds one after another: a 0, b 0, a 1, b 1.
    assert "--array=0,2,3 " in printed
    assert "--partition=gpu --gres=gpu:1 " in printed


def test_the_table_compares_at_the_last_step_that_all_have_reached(config_path, tmp_path, capsys):
    file = sweep_file(tmp_path, f"'base', '{config_path}', seeds=(0, 1)", f"'wide', '{config_path}:wide', seeds=(0, 1)")
    from launch.trials import record

    workdir = tmp_path / "run"
    record(plan(file, {}), workdir)
    logged = {
        ("base", 0): {10: 4.0, 20: 3.0, 30: 2.0},
        ("base", 1): {10: 4.0, 20: 3.5, 30: 2.5},
        ("wide", 0): {10: 4.5, 20: 3.75},
    }
    for (variant, seed), curve in logged.items():
        folder = workdir / variant / f"seed_{seed}"
        folder.mkdir(parents=True)
        lines = [json.dumps({"step": step, "holdout/bits": bits}) for step, bits in curve.items()]
        lines += [json.dumps({"step": 10, "train/images_per_sec": 2.0}), '{"step": 3']
        (folder / "metrics.jsonl").write_text("\n".join(lines))
    assert report.main([str(workdir), "--output", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "Holdout bits per pixel at step 20." in text
    base, wide = plan(file, {})[0].run, plan(file, {})[1].run
    assert base.model.ff_size == 8
    assert wide.model.ff_size == 16
    rows = [line.split(" | ") for line in text.splitlines()[4:]]
    assert [row[0].strip("| ") for row in rows] == ["base", "wide"]
    assert rows[0][3:6] == ["3.2500", "0.5000", "+0.0000"]
    assert rows[1][1:2] + rows[1][3:6] == ["1 of 2", "3.7500", "", "+0.5000"]
    assert (tmp_path / "report.csv").read_text().splitlines()[1].startswith("20,base,2 of 2,")
    assert "0 of 4 trials finished" in capsys.readouterr().out


SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES State=UP
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A real Slurm of one node, this machine, as long as the test lasts."""
    daemons = [shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("slurmctld", "slurmd")]
    if not all(daemons):
        pytest.skip("Slurm is not installed; on Debian: apt-get install slurm-wlm")
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    host = socket.gethostname().split(".")[0]
    text = SLURM_CONF.format(host=host, ports=ports, user=getpass.getuser(), folder=folder)
    (folder / "slurm.conf").write_text(text)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    processes = [subprocess.Popen([daemon, "-D"], stderr=subprocess.DEVNULL) for daemon in daemons]
    try:
        deadline = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo", "-h"], capture_output=True, text=True).stdout:
            logs = [path.read_text()[-2000:] for path in folder.glob("*.log")]
            assert time.monotonic() < deadline, "\n".join(logs)
            time.sleep(0.5)
        yield folder
    finally:
        for process in processes[::-1]:
            process.terminate()
        for process in processes:
            process.wait(timeout=60)


@pytest.mark.slow
def test_a_real_slurm_runs_the_array_to_the_end(slurm, config_path, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "")
    file = sweep_file(tmp_path, f"'a', '{config_path}', seeds=(0, 1)", f"'wide', '{config_path}:wide'")
    arguments = ["--sweep", str(file), "--workdir", str(tmp_path / "run"), "--backend", "slurm", "--options", "time=10"]
    assert sweep.main(arguments) == 0
    deadline = time.monotonic() + 300
    while subprocess.run(["squeue", "-h"], capture_output=True, text=True).stdout.strip():
        assert time.monotonic() < deadline, [path.read_text() for path in (tmp_path / "run" / "slurm").iterdir()]
        time.sleep(1)
    trials = plan(file, {})
    output = [path.read_text() for path in (tmp_path / "run").rglob("*.txt")]
    assert [trial.finished(tmp_path / "run") for trial in trials] == [True] * 3, output
    submitted = sorted((tmp_path / "run" / "slurm").iterdir())
    assert sweep.main(arguments) == 0
    assert sorted((tmp_path / "run" / "slurm").iterdir()) == submitted, "nothing is left to submit"
