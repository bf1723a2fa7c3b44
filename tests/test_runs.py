"""Whole runs: training, resuming, ending, evaluating, exporting, as a user does it."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
from helpers import cluster_flags, moved_parameters, refused, run, start, tiny_colorizer
from PIL import Image
from test_training import tiny_run

from coltran_jax import config as configs
from coltran_jax import partitioning
from coltran_jax.checkpoints.bundles import Bundle, load_bundle, save_bundle
from coltran_jax.cli import evaluate as evaluate_command
from coltran_jax.cli import export as export_command
from coltran_jax.data import sources
from coltran_jax.data.config import DataConfig
from coltran_jax.errors import CheckpointError, TrainingError
from coltran_jax.images import arrays
from coltran_jax.networks.chain import PUBLISHED
from coltran_jax.training import lock
from coltran_jax.training.checkpoints import Checkpoints, export, load_ema_params
from coltran_jax.training.config import MeshConfig
from coltran_jax.training.loop import fresh_state, programs, starting_weights, train
from coltran_jax.training.reporting import sample_images
from coltran_jax.training.validation import evaluate_checkpoints, gray_table, simple_bits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(30):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(root / f"{number}.png")
    return root


def small_run(folder, network="color_upsampler", **changes):
    data = DataConfig(dataset="folder", path=str(folder), holdout_fraction=0.3, num_threads=1)
    intervals = {"save_every_steps": 2, "eval_every_steps": 4, "log_images_every_steps": 0, "log_every_steps": 2}
    return tiny_run(network, **{"data": data, "max_train_steps": 4, **intervals, **changes})


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, one), jax.tree.map(np.asarray, other))


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A run of eight steps without a break: configuration, folder, last state."""
    config = small_run(folder, max_train_steps=8)
    workdir = tmp_path_factory.mktemp("run")
    return config, workdir, train(config, workdir)


def test_a_resumed_run_equals_one_without_a_break(finished, tmp_path):
    config, _, whole = finished
    train(dataclasses.replace(config, max_train_steps=4), tmp_path)
    equal(train(config, tmp_path), whole)


def test_another_mesh_goes_on_from_a_checkpoint(finished, tmp_path):
    config, _, whole = finished
    train(dataclasses.replace(config, max_train_steps=4, mesh=MeshConfig(data=2, fsdp=4)), tmp_path)
    state = train(dataclasses.replace(config, mesh=MeshConfig(data=4, spatial=2)), tmp_path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), state.params, whole.params)


def test_metrics_are_written_and_the_latest_and_best_are_kept(finished):
    _, workdir, _ = finished
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss_bits" in line] == [2, 4, 6, 8]
    assert [line["step"] for line in lines if "holdout/bits" in line] == [4, 8]
    assert any(path.name.startswith("events.out.tfevents") for path in workdir.iterdir())
    checkpoints = Checkpoints(workdir, read_only=True)
    measured = {step: checkpoints.holdout_bits(step) for step in checkpoints.steps()}
    assert set(measured) >= {4, 6, 8}
    assert measured[6] is None
    assert checkpoints.best() == min((4, 8), key=measured.get)


def test_evaluation_gives_the_bits_that_training_logged(finished):
    config, workdir, _ = finished
    (result,) = evaluate_checkpoints(config, workdir)
    assert result["step"] == 8
    assert result["bits"] == pytest.approx(Checkpoints(workdir, read_only=True).holdout_bits(8), rel=1e-6)
    uneven = dataclasses.replace(config, eval_batch_size=3, mesh=MeshConfig(data=1, spatial=8))
    (same,) = evaluate_checkpoints(uneven, workdir, step=8)
    assert same["bits"] == pytest.approx(result["bits"], rel=1e-5)
    assert same["count"] == result["count"]
    with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
        list(evaluate_checkpoints(config, workdir, step=5))


def test_simple_predictions_are_counted_on_the_training_images(tmp_path):
    # Every image black but for one colour a quarter of the time: 0.81 bits, but for the one that is added.
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16, :16] = 255
    for number in range(40):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    config = small_run(tmp_path, "colorizer")
    bits = simple_bits(config)
    assert bits["marginal_bits"] == pytest.approx(-0.25 * np.log2(0.25) - 0.75 * np.log2(0.75), abs=0.15)
    # Gray tells black from white, but for what is added to each gray value's counts.
    known = 256 * (40 - len(sources.open_source(config.data, "holdout")))
    white = (64 / 256 * known + 1) / (known + 512)
    black = (192 / 256 * known + 1) / (known + 512)
    expected = [0.25 * np.log2((known / 4 + 512 * white) / (known / 4 + 512))]
    expected += [0.75 * np.log2((known * 3 / 4 + 512 * black) / (known * 3 / 4 + 512))]
    assert bits["gray_bits"] == pytest.approx(-sum(expected), rel=1e-6)
    table = gray_table(config)
    np.testing.assert_allclose(np.exp(table).sum(axis=1), 1, rtol=1e-5)
    # White pixels are all of one gray value, 254 as the release rounds, and of one coarse colour.
    assert table[254, 511] == pytest.approx(np.log((known / 4 + 512 * white) / (known / 4 + 512)), rel=1e-5)


def test_exported_weights_are_the_ema_parameters(finished, tmp_path):
    _, workdir, state = finished
    list(export({"color_upsampler": f"{workdir}@8"}, tmp_path / "bundle.safetensors"))
    bundle = load_bundle(tmp_path / "bundle.safetensors")
    equal(bundle.params["color_upsampler"], state.ema_params)
    with pytest.raises(CheckpointError, match="a run of the color_upsampler, expected one of the colorizer"):
        list(export({"colorizer": workdir}, tmp_path / "other.safetensors"))


def test_a_run_may_start_from_a_bundle(finished, folder, tmp_path):
    config, workdir, state = finished
    list(export({"color_upsampler": f"{workdir}@8"}, tmp_path / "bundle.safetensors"))
    still = dataclasses.replace(config.optimizer, learning_rate=0.0)
    tuned = train(
        dataclasses.replace(config, optimizer=still, max_train_steps=1),
        tmp_path / "tuned",
        init_from=tmp_path / "bundle.safetensors",
    )
    equal(tuned.params, state.ema_params)
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, ff_size=16))
    with pytest.raises(CheckpointError, match=r"model.ff_size 8 -> 16"):
        train(wider, tmp_path / "wider", init_from=tmp_path / "bundle.safetensors")


def test_weights_of_another_resolution_are_resampled(folder, tmp_path):
    base = small_run(folder, "colorizer")
    small, large = (
        dataclasses.replace(base, model=tiny_colorizer((side, side)), downsample_res=side) for side in (8, 16)
    )
    bundle = Bundle({"colorizer": small.model}, {"colorizer": moved_parameters(small.model)})
    save_bundle(tmp_path / "small.safetensors", bundle)
    state = fresh_state(
        large,
        programs(large, partitioning.make_mesh({"data": -1, "fsdp": 1, "tensor": 1, "spatial": 1})),
        starting_weights(large, tmp_path / "small.safetensors"),
    )
    before, after = bundle.params["colorizer"], state.params
    equal(after["head"], before["head"])
    # A position of the larger image lies a quarter of a pixel of the smaller one from its nearest.
    rows = np.asarray(before["encoder"]["stack"]["position"]["rows"])
    expected = 0.75 * rows[3] + 0.25 * rows[4]
    np.testing.assert_allclose(after["encoder"]["stack"]["position"]["rows"][7], expected, rtol=1e-5)
    # Offset o of the smaller image is offset 2 o of the larger one.
    table, resampled = (tree["encoder"]["stack"]["blocks_0"]["attention"]["relative_bias"] for tree in (before, after))
    for offset in (-7, -1, 0, 3, 7):
        np.testing.assert_allclose(resampled[:, 15 + 2 * offset], table[:, 7 + offset], rtol=1e-5)
    np.testing.assert_allclose(resampled[:, 16], (table[:, 7] + table[:, 8]) / 2, rtol=1e-5)


def test_another_model_is_refused(finished):
    config, workdir, _ = finished
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, ff_size=16))
    with pytest.raises(CheckpointError, match=r"saved with another model \(model.ff_size 8 -> 16\)"):
        train(wider, workdir)


def test_a_loss_that_is_not_finite_stops_or_is_skipped(folder, tmp_path):
    huge = dataclasses.replace(small_run(folder).optimizer, learning_rate=1e30)
    config = small_run(folder, optimizer=huge, max_train_steps=6, save_every_steps=1)
    with pytest.raises(TrainingError, match=r"step 2: loss or gradient is not finite, at batch 1"):
        train(config, tmp_path / "stop")
    assert Checkpoints(tmp_path / "stop", read_only=True).steps() == [1]
    skipping = dataclasses.replace(config, on_nonfinite="skip", eval_every_steps=0)
    train(skipping, tmp_path / "skip")
    lines = [json.loads(line) for line in (tmp_path / "skip" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["train/num_nonfinite"] for line in lines) == 5


CONFIG = """
import json
from ml_collections import ConfigDict
def get_config():
    return ConfigDict(json.loads('''{}'''))
"""


def config_file(tmp_path, config):
    path = tmp_path / "run_config.py"
    path.write_text(CONFIG.format(json.dumps(configs.to_dict(config))))
    return path


def start_training(config_path, workdir, *flags, **options):
    arguments = [f"--config={config_path}", f"--workdir={workdir}", *flags]
    return start("coltran_jax", "train", *arguments, stderr=subprocess.STDOUT, **options)


def wait_for(process, text, lines):
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return
    raise AssertionError("".join(lines))


@pytest.mark.slow
def test_termination_saves_and_a_kill_loses_only_what_was_not_saved(folder, tmp_path):
    config = small_run(folder, max_train_steps=100_000, eval_every_steps=0, save_every_steps=20, log_every_steps=5)
    path, workdir = config_file(tmp_path, config), tmp_path / "run"
    lines = []
    process = start_training(path, workdir)
    wait_for(process, "step 30/", lines)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0, "".join(lines) + process.stdout.read()
    ended = Checkpoints(workdir, read_only=True).latest()
    assert ended >= 30
    process = start_training(path, workdir)
    wait_for(process, f"step {(ended // 5 + 12) * 5}/", lines)
    process.kill()
    process.wait()
    checkpoints = Checkpoints(workdir, read_only=True)
    latest = checkpoints.latest()
    assert latest >= ended + 20
    mesh = partitioning.make_mesh(dict.fromkeys(partitioning.AXES, 1), jax.devices()[:1])
    assert int(checkpoints.restore(latest, config, mesh).step) == latest


def test_ctrl_c_saves_and_nobody_else_may_train_meanwhile(folder, tmp_path):
    config = small_run(folder, max_train_steps=100_000, eval_every_steps=0, save_every_steps=0, log_every_steps=5)
    path, workdir = config_file(tmp_path, config), tmp_path / "run"
    lines = []
    process = start_training(path, workdir)
    wait_for(process, "step 10/", lines)
    with pytest.raises(CheckpointError, match=rf"another run uses it \(process {process.pid} on .*, since "):
        train(config, workdir)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    ended = Checkpoints(workdir, read_only=True).latest()
    assert f"interrupted at step {ended}, saved\n" in output
    assert "Traceback" not in output
    assert not (workdir / "lock.json").exists()


@pytest.mark.parametrize("owner", [{"host": socket.gethostname(), "pid": 2**22 + 1}, {"host": "elsewhere", "pid": 1}])
def test_the_lock_of_a_run_that_has_ended_is_taken_over(tmp_path, owner):
    path = tmp_path / lock.NAME
    path.write_text(json.dumps({"process_started": "1", "started": "2020-01-01 00:00:00", **owner}))
    if owner["host"] == "elsewhere":
        with pytest.raises(CheckpointError, match="process 1 on elsewhere, since 2020"), lock.locked(tmp_path):
            pass
        os.utime(path, (0, 0))
    with lock.locked(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def damage(step, kind):
    if kind == "truncated":
        for file in (step / "state").rglob("*"):
            if file.is_file() and file.parent.name == "d":
                os.truncate(file, file.stat().st_size // 2)
    else:
        shutil.rmtree(step / kind)


@pytest.mark.parametrize("kind", ["truncated", "run", "state"])
def test_a_damaged_checkpoint_is_named_and_another_can_be_restored(folder, tmp_path, kind):
    config = small_run(folder, max_train_steps=4, eval_every_steps=0, keep_checkpoints=3)
    train(config, tmp_path)
    damage(tmp_path / "checkpoints" / "4", kind)
    longer = dataclasses.replace(config, max_train_steps=6)
    message = r"the checkpoint of step 4 is damaged .*; there are those of 2: train with --restore_step"
    with pytest.raises(CheckpointError, match=message):
        train(longer, tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3; there are 2, 4"):
        train(longer, tmp_path, restore_step=3)
    assert int(train(longer, tmp_path, restore_step=2).step) == 6
    assert Checkpoints(tmp_path, read_only=True).steps() == [2, 4, 6]
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6], "each step once, whatever was trained again"


def test_a_run_that_goes_on_tells_what_has_changed(folder, tmp_path, caplog):
    config = small_run(folder, max_train_steps=2, eval_every_steps=0, log_every_steps=1)
    train(config, tmp_path)
    changed = dataclasses.replace(config, max_train_steps=4, eval_batch_size=16)
    with caplog.at_level(logging.INFO):
        train(changed, tmp_path)
        assert "changed since then: eval_batch_size 8 -> 16, max_train_steps 2 -> 4" in caplog.text
        train(changed, tmp_path)
        assert "that is the last step, max_train_steps; nothing to do" in caplog.text
    with pytest.raises(CheckpointError, match="trained to step 4, beyond max_train_steps, 2"):
        train(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(0 <= line["train/input_wait_fraction"] <= 1 for line in lines)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_that_names_the_step(folder, tmp_path, small_disk):
    config = small_run(folder, max_train_steps=4, eval_every_steps=0, save_every_steps=2)
    path = config_file(tmp_path, config)
    done = run("coltran_jax", "train", f"--config={path}", f"--workdir={small_disk / 'run'}")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {small_disk / 'run' / 'checkpoints'}: the checkpoint of step 2 could not be written (no space left on "
        "device); earlier ones are intact\n"
    )
    assert Checkpoints(small_disk / "run", read_only=True).steps() == []


@pytest.mark.slow
def test_two_processes_train_like_one(folder, tmp_path):
    config = small_run(folder, "colorizer", max_train_steps=3, mesh=MeshConfig(data=4, spatial=2), eval_every_steps=3)
    path = config_file(tmp_path, config)
    flags = cluster_flags(2)
    four = "--xla_force_host_platform_device_count=4"
    processes = [start_training(path, tmp_path / "two", *flags, f"--process_id={i}", XLA_FLAGS=four) for i in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    alone = train(dataclasses.replace(config, mesh=MeshConfig(data=4, spatial=2)), tmp_path / "one")
    _, ema_params, step = load_ema_params(tmp_path / "two", 3)
    assert step == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ema_params, alone.ema_params)
    bits = [Checkpoints(tmp_path / name, read_only=True).holdout_bits(3) for name in ("one", "two")]
    assert bits[0] == pytest.approx(bits[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_when_a_process_is_killed_the_other_says_which(folder, tmp_path, killed):
    config = small_run(folder, max_train_steps=100_000, mesh=MeshConfig(data=2), eval_every_steps=0, log_every_steps=5)
    path = config_file(tmp_path, dataclasses.replace(config, save_every_steps=0))
    flags = [*cluster_flags(2), "--heartbeat_timeout=3"]
    errors = [(tmp_path / f"stderr{i}").open("w") for i in range(2)]
    arguments = ["coltran_jax", "train", f"--config={path}", f"--workdir={tmp_path / 'run'}", *flags]
    processes = [start(*arguments, f"--process_id={i}", stderr=errors[i]) for i in range(2)]
    try:
        wait_for(processes[0], "step 10/", [])
        processes[killed].kill()
        assert processes[1 - killed].wait(timeout=60) != 0
    finally:
        for process, file in zip(processes, errors, strict=True):
            process.kill()
            process.communicate()
            file.close()
    path = tmp_path / f"stderr{1 - killed}"
    # Where process 0 is gone, the line comes from a child of the process that JAX aborted.
    deadline = time.monotonic() + 20
    while "is gone" not in path.read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    line = path.read_text().splitlines()[-1]
    assert line.startswith(f"error: process {killed}")
    assert line.endswith("Start all processes again: the run goes on from its last checkpoint")
    assert "Traceback" not in path.read_text()


@pytest.mark.slow
def test_a_run_goes_on_without_a_lost_slice_and_takes_it_back(folder, tmp_path):
    config = small_run(folder, max_train_steps=100_000, eval_every_steps=0)
    workdir = tmp_path / "run"

    def processes_of(count, num_steps):
        path = config_file(tmp_path, dataclasses.replace(config, max_train_steps=num_steps))
        flags = [*cluster_flags(count), "--heartbeat_timeout=3"]
        return [start_training(path, workdir, *flags, f"--process_id={i}") for i in range(count)]

    # Two slices of two processes, a device each, of which the second slice is lost.
    processes = processes_of(4, config.max_train_steps)
    wait_for(processes[0], "step 6/", [])
    for process in processes[2:]:
        process.kill()
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert all(process.returncode != 0 for process in processes), outputs
    latest = Checkpoints(workdir, read_only=True).latest()
    assert latest >= 4
    for count, num_steps in ((2, latest + 4), (4, latest + 8)):
        processes = processes_of(count, num_steps)
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * count, "".join(outputs)
    # The same batches in the same order as without a break.
    alone = train(dataclasses.replace(config, max_train_steps=latest + 8), tmp_path / "alone")
    _, ema_params, step = load_ema_params(workdir, latest + 8)
    assert step == latest + 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ema_params, alone.ema_params)


def test_the_command_lines_evaluate_and_export_a_run(finished, tmp_path, capsys, tiny_bundle_path):
    config, workdir, state = finished
    path = config_file(tmp_path, config)
    assert evaluate_command.main(["run", f"--config={path}", f"--workdir={workdir}", "--step=8"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bits"] == pytest.approx(Checkpoints(workdir, read_only=True).holdout_bits(8), rel=1e-6)
    message = refused(capsys, "evaluate", "run", f"--config={path}", f"--workdir={workdir}", "--marginal")
    assert "--marginal is about predicting coarse colours" in message
    path = config_file(tmp_path, small_run(config.data.path, "colorizer"))
    # They come first, and then there is no run to evaluate.
    assert evaluate_command.main(["run", f"--config={path}", f"--workdir={tmp_path / 'none'}", "--marginal"]) == 2
    assert json.loads(capsys.readouterr().out).keys() == {"marginal_bits", "gray_bits"}
    options = ["--color_upsampler", f"{workdir}@8", "--output", str(tmp_path / "bundle.safetensors")]
    assert export_command.main(options) == 0
    assert "color_upsampler: step 8" in capsys.readouterr().out
    equal(load_bundle(tmp_path / "bundle.safetensors").params["color_upsampler"], state.ema_params)
    counted = tmp_path / "counted.safetensors"
    assert export_command.main([*options[:-1], str(counted), f"--config={path}"]) == 0
    expected = gray_table(small_run(config.data.path, "colorizer"))
    np.testing.assert_array_equal(load_bundle(counted).gray_table, expected)
    advice = {"temperature": 0.9, "min_p": 0.1, "guidance": 0.5}
    flags = [f"--{name}={value}" for name, value in advice.items()]
    advised = ["--colorizer", str(tiny_bundle_path), "--output", str(tmp_path / "advised.safetensors"), *flags]
    message = refused(capsys, "export", *advised)
    assert "guidance is recommended, but there is no table of colours by gray value" in message
    assert export_command.main([*advised, f"--config={path}"]) == 0
    assert load_bundle(tmp_path / "advised.safetensors").recommended == advice
    capsys.readouterr()
    half = tmp_path / "half.safetensors"
    assert export_command.main([*options[:-1], str(half), "--dtype", "float16"]) == 0
    assert half.stat().st_size < 0.8 * (tmp_path / "bundle.safetensors").stat().st_size
    again = ["--color_upsampler", str(half), "--output", str(tmp_path / "again.safetensors"), "--dtype", "float16"]
    assert export_command.main(again) == 0
    assert (tmp_path / "again.safetensors").read_bytes() == half.read_bytes()
    assert export_command.main(["--colorizer", str(half), "--output", str(tmp_path / "none.safetensors")]) == 2
    assert "half.safetensors: has color_upsampler, lacks colorizer" in capsys.readouterr().err
    assert export_command.main(options) == 2
    assert "exists; give --overwrite" in capsys.readouterr().err
    assert export_command.main(["--output", str(tmp_path / "none.safetensors")]) == 2
    assert "nothing to export" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_leaves_earlier_checkpoints(folder, tmp_path):
    config = small_run(folder, max_train_steps=2, eval_every_steps=0)
    workdir = tmp_path / "run"
    state = train(config, workdir)
    path = config_file(tmp_path, dataclasses.replace(config, max_train_steps=6))
    # No file may grow beyond this, which is how a full disk looks to a program: a write that fails.
    process = start_training(path, workdir, before=["bash", "-c", 'ulimit -f 4; exec "$@"', "limited"])
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2, output
    # One line, not a traceback for each of Orbax's writers; a thread of its may still say that their loop has ended.
    assert "never retrieved" not in output
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "could not be written" in error
    assert "earlier ones are intact" in error
    checkpoints = Checkpoints(workdir, read_only=True)
    assert checkpoints.steps() == [2]
    mesh = partitioning.make_mesh(dict.fromkeys(partitioning.AXES, 1), jax.devices()[:1])
    equal(checkpoints.restore(2, config, mesh).params, state.params)


def test_a_workdir_that_cannot_be_made_is_refused(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/run: cannot be written to \(Not a directory\)"):
        train(small_run(folder), tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.model.hiden_size=3"], "the configuration has no field"),
        (["--config.dtype=float16"], "dtype is 'float16', expected one of"),
        (["--config.mesh.data=3"], "takes 3 devices, found 8"),
        (["--config.data.path=/nonexistent"], "data.path is '/nonexistent': no such folder"),
        (["--config.data.dataset=imagenet"], "is not prepared"),
        (["--config.batch_size=wrong"], "batch_size"),
        (["--num_processes=2"], "go together"),
    ],
)
def test_impossible_runs_are_refused_in_one_line(folder, tmp_path, capsys, flags, message):
    path = config_file(tmp_path, small_run(folder))
    assert message in refused(capsys, "train", f"--config={path}", f"--workdir={tmp_path / 'run'}", *flags)


@pytest.mark.parametrize("network", PUBLISHED)
def test_sample_images_are_gray_result_and_truth(folder, network):
    config = small_run(folder, network)
    mesh = partitioning.make_mesh(dict.fromkeys(partitioning.AXES, 1), jax.devices()[:1])
    sheet = sample_images(config, mesh, fresh_state(config, programs(config, mesh)).ema_params)
    side = 32 if network == "spatial_upsampler" else 16
    assert sheet.shape == (4 * side, 3 * side, 3)
    gray, truth = sheet[:, :side], sheet[:, 2 * side :]
    np.testing.assert_array_equal(gray[..., :1], arrays.gray_from_rgb(truth))


def test_watching_ends_with_the_runs_last_checkpoint(finished):
    config, workdir, _ = finished
    started = time.monotonic()
    results = list(evaluate_checkpoints(config, workdir, watch=True, num_examples=2))
    assert results[-1]["step"] == 8
    assert len(results) == len(Checkpoints(workdir, read_only=True).steps())
    assert time.monotonic() - started < 60
