"""Reports to Weights & Biases, in its offline mode: what a run's file holds is what would be sent."""

import importlib.util
import json
import struct

import flax.linen as nn
import jax
import numpy as np
import pytest
from test_training import tiny_run

from coltran_jax import partitioning
from coltran_jax.errors import ConfigError
from coltran_jax.training import state as states
from coltran_jax.training import tracking
from coltran_jax.training.reporting import Reporter


def records(path):
    """The records of a run's file, which has the format of LevelDB's logs after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0:
            # The rest of a block of 32 KiB.
            at = (at // 32768 + 1) * 32768
            continue
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        # Whole, or the last of several.
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


@pytest.fixture
def offline(monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_trials_are_grouped_and_go_on_as_the_same_run(offline, tmp_path):
    workdir = tmp_path / "sweep" / "no_cln" / "seed_1"
    workdir.mkdir(parents=True)
    (tmp_path / "sweep" / tracking.SWEEP_RECORD).write_text("[]")
    config = tiny_run("colorizer", wandb_project="colours")
    for step in (3, 5):
        writer = tracking.WandbWriter(config, workdir)
        writer.write_scalars(step, {"train/loss_bits": step / 2})
        writer.write_images(step, {"holdout/image": np.zeros((1, 4, 4, 3), np.uint8)})
        writer.write_texts(step, {"note": "hello"})
        writer.write_histograms(step, {"weights": np.arange(10.0)})
        writer.write_hparams({"more": step})
        writer.flush()
        writer.close()
    files = sorted(workdir.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1, "one run, that goes on"
    found = [record for file in files for record in records(file)]
    runs = [record.run for record in found if record.HasField("run")]
    assert {(run.project, run.run_group, run.display_name) for run in runs} == {
        ("colours", "sweep/no_cln", "no_cln/seed_1")
    }
    fields = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert fields["model"]["hidden_size"] == config.model.hidden_size
    history = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    losses = [(line["step"], line["train/loss_bits"]) for line in history if "train/loss_bits" in line]
    assert losses == [(3, 1.5), (5, 2.5)]
    assert {"holdout/image", "note", "weights"} <= {name for line in history for name in line}


def test_a_training_run_reports_there_beside_tensorboard(offline, tmp_path):
    config = tiny_run("color_upsampler", wandb_project="colours")
    mesh = partitioning.make_mesh(dict.fromkeys(partitioning.AXES, 1), jax.devices()[:1])
    reporter = Reporter(config, tmp_path, mesh, nn.unbox(states.create(config)))
    reporter.write(2, {"train/loss_bits": 1.25})
    reporter.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    history = [record.history for record in records(file) if record.HasField("history")]
    assert any(item.value_json == "1.25" for line in history for item in line.item)
    assert any(path.name.startswith("events.out.tfevents") for path in tmp_path.iterdir())


def test_names_without_a_sweep(tmp_path):
    assert tracking.names_of(tmp_path / "runs" / "first") == (None, "first")


def test_a_project_without_the_package_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb_project is 'colours', but wandb is not installed: pip install wandb"):
        tracking.check("colours")
    tracking.check("")
