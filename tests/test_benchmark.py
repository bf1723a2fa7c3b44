import json

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from launch import benchmark, roofline, sampling_speed


@pytest.mark.slow
def test_sampling_benchmark_prints_a_table_and_a_line_of_json(tiny_bundle_path, capsys):
    options = [
        "--weights",
        str(tiny_bundle_path),
        "--repeats",
        "1",
        "--naive_rows",
        "1",
        "--particles",
        "2",
    ]
    assert benchmark.main(["sample", *options]) == 0
    *table, line = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    names = ["gray encoder", "decoders", "color upsampler", "spatial upsampler", "all"]
    assert [stage["stage"] for stage in report["stages"]] == names
    for name in names:
        assert any(row.startswith(name) for row in table)
    assert all(stage["ms_per_image"] > 0 for stage in report["stages"])
    assert report["naive_over_ours"] > 0
    assert report["particles_over_samples"] > 0
    assert report["peak_memory_gib"] > 0
    for stage in report["stages"][:-1]:
        # At best, no stage is faster than the device.
        assert stage["ms_per_image"] > max(stage["floor_arithmetic_ms"], stage["floor_memory_ms"]) > 0
    assert (report["size"], report["batch_size"], report["dtype"]) == (str(tiny_bundle_path), 1, "float32")


def test_colorize_benchmark_tells_the_hosts_share(tiny_bundle_path, tmp_path, capsys):
    for number in range(3):
        Image.fromarray(np.full((30, 40), 100, np.uint8)).save(tmp_path / f"{number}.png")
    options = ["--images", str(tmp_path), "--weights", str(tiny_bundle_path), "--format", "jpg", "--quality", "80"]
    assert benchmark.main(["colorize", *options, "--null_network"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["images"], report["format"], report["quality"]) == (3, "jpg", 80)
    assert all(report[f"{stage}_ms"] > 0 for stage in ("decode", "prepare", "chroma", "encode", "floor"))
    assert report["images_per_sec_1_cores"] > 0
    assert 0 < report["networks_idle_1_cores"] < 1


def test_floors_are_of_the_whole_network():
    config = sampling_speed.network_configs("tiny")["colorizer"]
    one, two = (roofline.colorizer_work(config, batch, itemsize=4) for batch in (1, 2))
    # 16 wide, 4096 pixels, products alone: at least two operations a weight and pixel, not twice what attention adds.
    weights = 4 * (3 + 1 + 2) * 16 * 16 * 2
    assert 1 < one["gray encoder"].flops / (2 * 4096 * weights) < 8
    for stage in one:
        assert two[stage].flops == pytest.approx(2 * one[stage].flops, rel=0.02)
        # Weights are read once for a batch, whatever its size.
        assert one[stage].bytes < two[stage].bytes < 2 * one[stage].bytes


def test_a_pixel_reads_no_weights_of_conditions():
    config = sampling_speed.network_configs("paper")["colorizer"]
    # Of two blocks, for each pixel: queries, keys, values and output, MLP, relative bias; then the head.
    block = 4 * 512**2 + 2 * (512**2 + 512) + 4 * 128
    work = roofline.colorizer_work(config, 1, itemsize=4)["decoders"]
    positions = 2 * 64 * 512
    assert work.working_set == 4 * (2 * block + 512**2 + 512 + 2 * 512 + positions)
    fewer = roofline.colorizer_work(config, 1, itemsize=4, passes=64 * 10)["decoders"]
    assert work.bytes - fewer.bytes > (4096 - 640) * work.working_set


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_training_benchmark_reports_a_step(capsys):
    # The paper's color upsampler, made small: width and resolution are set as any field is.
    small = ["model.hidden_size=8", "model.ff_size=8", "model.num_heads=2", "model.num_encoder_layers=1"]
    small += ["model.resolution=(8,8)", "downsample_res=8", "resolution=16"]
    args = [
        "train",
        "--config",
        str(ROOT / "configs/color_upsampler.py"),
        "--batch_size",
        "8",
        *(f"--config.{field}" for field in small),
    ]
    assert benchmark.main(args) == 0
    report = last_line(capsys)
    assert report["network"] == "color_upsampler"
    assert report["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1, "spatial": 1}
    assert report["images_per_sec"] == pytest.approx(8 / report["step_secs"])
    assert report["tflops_per_sec"] > 0


def test_data_benchmark_reports_images_a_second(capsys):
    assert benchmark.main(["data", "--batch_size", "4", "--num_batches", "2", "--num_threads", "1"]) == 0
    assert last_line(capsys)["images_per_sec"] > 0


@pytest.mark.slow
def test_startup_benchmark_tells_where_the_time_goes(tiny_bundle_path, monkeypatch, capsys):
    # One device, as a computer has.
    monkeypatch.delenv("XLA_FLAGS")
    assert benchmark.main(["startup", "--weights", str(tiny_bundle_path), "--repeats", "1"]) == 0
    report = last_line(capsys)
    for state in ("cold", "warm"):
        parts = ("importing", "tracing", "lowering", "compiling", "other")
        assert sum(report[f"{state}_{part}_secs"] for part in parts) == pytest.approx(report[f"{state}_secs"])
        # Encoding, noise, decoding and two upsamplings; programs that make arrays of parameters would come on top.
        assert 5 <= report[f"{state}_programs"] <= 12


@pytest.mark.slow
def test_sampling_benchmark_times_what_is_asked_for(capsys):
    options = ["--stages", "color_upsampler", "--chunk", "2", "--dtype", "bfloat16", "--batch_size", "2"]
    assert benchmark.main(["sample", "--size", "tiny", "--repeats", "1", *options]) == 0
    report = last_line(capsys)
    assert [stage["stage"] for stage in report["stages"]] == ["color upsampler", "all"]
    assert (report["batch_size"], report["dtype"]) == (2, "bfloat16")


@pytest.mark.slow
def test_sampling_benchmark_takes_a_bundle_and_images(tiny_bundle_path, capsys):
    images = ["--images", str(ROOT / "tests" / "holdout")]
    options = ["--weights", str(tiny_bundle_path), "--stages", "colorizer", "--decoder", "fixed_point"]
    options += ["--window", "4"]
    assert benchmark.main(["sample", *options, *images, "--batch_size", "2", "--repeats", "1"]) == 0
    report = last_line(capsys)
    assert 4 <= report["num_iterations"] <= report["num_iterations_of_batch"] <= 16
    assert benchmark.main(["sample", *options, *images, "--batch_size", "99"]) == 2
    assert "images, expected a batch of 99" in capsys.readouterr().err
    assert benchmark.main(["sample", *options, "--backend", "pallas"]) == 2
    assert "backend is 'pallas', expected 'xla'" in capsys.readouterr().err
