"""What starts runs elsewhere: scripts, manifests, engines, as far as they can be tried on one machine."""

import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from helpers import ROOT
from PIL import Image
from test_runs import config_file, wait_for
from test_training import tiny_run

from coltran_jax.cli import colorize
from coltran_jax.data.config import DataConfig
from coltran_jax.training.checkpoints import Checkpoints
from launch import gke, sweep
from launch.gke import __main__ as gke_command

SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), *sorted((ROOT / "launch").glob("*.sbatch")), ROOT / ".ci" / "run"]
DOCKERFILES = sorted((ROOT / "launch").rglob("*Dockerfile"))
TPU = ["--name=run", "--zone=us-west4-a"]


def script(name, *args, path=None):
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    return subprocess.run(
        ["bash", str(ROOT / "launch" / name), *args], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    assert shutil.which("shellcheck"), "pip install -r requirements-dev.txt"
    done = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path):
    assert shutil.which("hadolint"), "pip install -r requirements-dev.txt"
    done = subprocess.run(["hadolint", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_tpu_slice_is_made_installed_on_and_used():
    flags = ["--config=configs/colorizer.py", "--config.data.path=/mnt/bucket/my data"]
    done = script(
        "tpu_vm.sh", "up", *TPU, "--type=v5litepod-16", "--bucket=b", "--spot", "--project=p", "--dry_run", "--", *flags
    )
    assert done.returncode == 0, done.stderr
    made, copied, *rest = [line for line in done.stdout.splitlines() if line.startswith("gcloud")]
    assert made.startswith(
        "gcloud compute tpus queued-resources create run --node-id=run --project=p --zone=us-west4-a "
    )
    assert made.rstrip().endswith("--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot")
    assert "tpu-vm scp" in copied
    assert len(rest) == 2
    assert all("--worker=all" in line for line in (copied, *rest))
    # The command of the last line as the worker's shell gets it, and the words that it makes of it.
    command = subprocess.run(
        ["bash", "-c", f'set -- {rest[-1]}; echo "${{*: -1}}"'], capture_output=True, text=True
    ).stdout
    program = command.removeprefix("--command=").split(" 2>&1")[0].split(" && ")[1]
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {program}"], capture_output=True, text=True
    ).stdout.splitlines()
    assert words == [".venv/bin/python", "-m", "coltran_jax", "train", *flags, "--workdir=/mnt/bucket/run"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["up", *TPU, "--type=v5litepod-16", "--", "--config=c"], "--bucket is missing"),
        (["up", *TPU, "--bucket=b", "--", "--config=c"], "--type is missing"),
        (["up", *TPU, "--bucket=b", "--type=v5litepod-16"], "nothing to train"),
        (["up", *TPU, "--bucket=b", "--type=t", "--", "--workdir=w"], "--workdir is set from"),
        (["down", "--name=run"], "--zone is missing"),
        (["down", *TPU, "--force"], "unexpected --force"),
        (["down", *TPU], "gcloud is not on this machine"),
    ],
)
def test_impossible_tpu_commands_are_refused(tmp_path, args, message):
    # Only what the script itself needs is on the path.
    for name in ("bash", "dirname", "sed"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = script("tpu_vm.sh", *args, path=str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


OPTIONS = {"image": "example/coltran:1", "topology": "v5e:4x4", "bucket": "images"}


@pytest.mark.parametrize(("topology", "workers", "chips"), [("v5e:4x4", 4, 4), ("v5p:4x8x8", 64, 4), ("v6e:1x1", 1, 1)])
def test_manifests_fit_the_schemas_of_jobset_and_kubernetes(topology, workers, chips):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    models = pytest.importorskip("kubeflow_trainer_api.models")
    text = gke.manifest("Sweep_1-no_cln-0", ["python", "-m", "x", '--a="b c"'], {**OPTIONS, "topology": topology})
    loaded = yaml.safe_load(text)
    known = models.JobsetV1alpha2JobSet.from_dict(loaded).to_dict()
    assert known["spec"] == loaded["spec"], "no field is unknown to JobSet"
    assert loaded["metadata"]["name"] == "sweep-1-no-cln-0"
    job = loaded["spec"]["replicatedJobs"][0]["template"]
    assert job["spec"]["parallelism"] == job["spec"]["completions"] == workers
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert container["command"] == ["python", "-m", "x", '--a="b c"']
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **job}
    kubernetes_validate.validate(whole, "1.31", strict=True)


def test_several_slices_are_replicas():
    loaded = yaml.safe_load(gke.manifest("run", ["python"], {**OPTIONS, "slices": "2"}))
    (train,) = loaded["spec"]["replicatedJobs"]
    assert (train["replicas"], train["template"]["spec"]["completions"]) == (2, 4)


def test_an_archive_is_shared_out_by_an_indexed_job_and_by_an_array():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    job = yaml.safe_load((ROOT / "launch" / "gke" / "colorize.yaml").read_text())
    kubernetes_validate.validate(job, "1.31", strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    arguments = [word.replace("$(JOB_COMPLETION_INDEX)", "15") for word in container["args"]]
    args = colorize.parse_args(arguments)
    assert (args.shard, args.skip_existing) == ((15, job["spec"]["completions"]), True)
    done = script("colorize.sbatch", "--dry_run", "photos", "--output", "my output")
    words = shlex.split(done.stdout)
    assert words[-3:] == ["photos", "--output", "my output"]
    assert colorize.parse_args(words[4:]).shard == (0, 1)


def test_a_run_on_gke_is_one_manifest(capsys):
    options = ["--name", "run", "--image=i", "--topology=v5e:4x4", "--bucket=b", "--dry_run"]
    more = ["--namespace=vision", "--service_account=trainer", "--restarts=3", "--slices=2"]
    assert gke_command.main([*options, *more, "--", "--config=configs/colorizer.py"]) == 0
    jobset = yaml.safe_load(capsys.readouterr().out)
    assert jobset["metadata"]["namespace"] == "vision"
    assert jobset["spec"]["failurePolicy"] == {"maxRestarts": 3}
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 2
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "trainer"
    command = ["python", "-m", "coltran_jax", "train", "--config=configs/colorizer.py", "--workdir=/mnt/bucket/run"]
    assert spec["containers"][0]["command"] == command
    assert gke_command.main([*options, "--", "--workdir=x"]) == 2
    assert "--workdir is set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**OPTIONS, "topology": "v9:4x4"}, "topology 'v9:4x4': expected"),
        ({**OPTIONS, "topology": "v5e:3x3"}, "9 chips, expected a multiple of 4"),
        ({**OPTIONS, "gpus": "1"}, "gpus: no option of gke"),
        ({"image": "i", "topology": "v5e:4x4"}, "gke needs the option bucket"),
        ({**OPTIONS, "restarts": "many"}, "restarts is 'many'"),
    ],
)
def test_impossible_manifests_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gke.manifest("run", ["python"], options)


def test_a_sweep_on_gke_is_a_manifest_a_trial(tmp_path, capsys):
    options = [f"{key}={value}" for key, value in OPTIONS.items()]
    arguments = ["--sweep", str(ROOT / "configs" / "sweeps" / "conditioning.py"), "--workdir", str(tmp_path / "abl")]
    assert sweep.main([*arguments, "--backend", "gke", "--dry_run", "--options", *options]) == 0
    _, manifests = capsys.readouterr().out.split("\n", 1)
    loaded = list(yaml.safe_load_all(manifests))
    assert len(loaded) == len({one["metadata"]["name"] for one in loaded}) == 20
    assert loaded[1]["metadata"]["name"] == "abl-no-cln-0"
    text = str(loaded[1])
    assert "'--config=configs/colorizer.py:no_cln'" in text
    assert "'--workdir=/mnt/bucket/abl/no_cln/seed_0'" in text


# Starts as many processes as SLURM_NTASKS says, each with its own rank, and passes SIGTERM on to them, as srun does.
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
trap 'kill -TERM $(jobs -p)' TERM
for rank in $(seq 0 $((SLURM_NTASKS - 1))); do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
done
status=0
for job in $(jobs -p); do
  while wait "$job"; code=$?; kill -0 "$job" 2>/dev/null; do :; done
  [ "$code" -eq 0 ] || status=$code
done
exit $status
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" > "$(dirname "$0")/requeued"
"""


def slurm_job(tmp_path, *flags, job=4321):
    """The batch script under stand-ins for srun and scontrol: two processes of two devices on this machine."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_ID": job, "NTASKS": 2, "STEP_NODELIST": "localhost", "STEP_NUM_NODES": 1, "PROCID": 0, "LOCALID": 0}
    environment = {
        **os.environ,
        **{f"SLURM_{key}": str(value) for key, value in slurm.items()},
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "COLTRAN_PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = ["bash", str(ROOT / "launch" / "slurm.sbatch"), *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def training_flags(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "images" / f"{number}.png")
    data = DataConfig(dataset="folder", path=str(tmp_path / "images"), holdout_fraction=0.3, num_threads=1)
    intervals = {"save_every_steps": 0, "eval_every_steps": 0, "log_images_every_steps": 0, "log_every_steps": 2}
    config = tiny_run("color_upsampler", data=data, **{**intervals, "max_train_steps": 100_000})
    return [f"--config={config_file(tmp_path, config)}", f"--workdir={tmp_path / 'run'}"]


@pytest.mark.slow
def test_the_slurm_script_trains_with_two_processes_and_is_queued_again(tmp_path, training_flags):
    process = slurm_job(tmp_path, *training_flags)
    lines = []
    wait_for(process, "step 4/", lines)
    assert any("'data': 4" in line for line in lines), "two processes of two devices are one mesh"
    process.terminate()
    rest = process.communicate(timeout=120)[0]
    assert process.returncode == 0, "".join(lines) + rest
    assert "asked to end: saved step" in rest
    assert (tmp_path / "requeued").read_text() == "requeue 4321\n"
    saved = Checkpoints(tmp_path / "run", read_only=True).latest()
    # As Slurm does: the same job once more. It goes on, and ends.
    (tmp_path / "requeued").unlink()
    process = slurm_job(tmp_path, *training_flags, f"--config.max_train_steps={saved + 4}", job=4322)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert f"resumed from step {saved}" in output
    assert not (tmp_path / "requeued").exists()
    assert Checkpoints(tmp_path / "run", read_only=True).latest() == saved + 4


@pytest.mark.slow
def test_a_failing_slurm_run_is_not_queued_again(tmp_path, training_flags):
    process = slurm_job(tmp_path, *training_flags, "--config.batch_size=3")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2, output
    assert "error: batch_size is 3" in output
    assert not (tmp_path / "requeued").exists()


def test_the_slurm_script_shows_its_command():
    done = script("slurm.sbatch", "--dry_run", "--config=c.py", "--workdir=/a b")
    expected = r"srun --kill-on-bad-exit=1 python -m coltran_jax train --config=c.py --workdir=/a\ b"
    assert done.stdout.strip() == expected
