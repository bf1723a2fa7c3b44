"""Training steps compiled for real TPU pod slices, where libtpu is installed."""

import dataclasses
import importlib.util
import os
import pathlib

import pytest
from helpers import ROOT

from launch import compile as compiling

HLO = """
  %ag = bf16[64,128,128,512]{3,2,1,0} all-gather(%x), replica_groups={}
  %ar = (f32[8,4]{1,0}, f32[2]{0}) all-reduce-start(%y, %z)
  %w = bf16[512,3,4,128]{3,2,1,0} all-gather(%kernel)
  %f = f32[8]{0} fusion(%all-gather.1)
"""


def test_collectives_are_counted_with_their_bytes():
    found = compiling.collectives(HLO)
    assert found["all-reduce"] == (1, 4 * (32 + 2))
    assert found["all-gather"] == (2, 2 * (64 * 128 * 128 * 512 + 512 * 3 * 4 * 128))
    assert compiling.gathered_batches(HLO, batch_per_device=1, pixels=4096) == ["all-gather to [64, 128, 128, 512]"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--topology", "v9:2x2"], "topology 'v9:2x2': expected GENERATION:AxB"),
        (["--topology", "v5e"], "topology 'v5e': expected"),
        (["--topology", "v5e:2x2", "--mesh", "rows=2"], "--mesh rows=2: expected AXIS=SIZE"),
        (["--topology", "v5e:2x2", "--set", "hiden=3"], "--set hiden=3: expected FIELD=VALUE"),
        (["--topology", "v5e:2x2", "--config", "none.py"], "none.py: no such file"),
    ],
)
def test_impossible_options_are_refused(capsys, args, message):
    assert compiling.main(["--config", str(ROOT / "configs" / "colorizer.py"), *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


TOPOLOGIES = [
    ("colorizer", "v5e:2x2", "data=4", 32),
    ("colorizer", "v5e:16x16", "data=256", 1792),
    ("color_upsampler", "v5e:2x2", "data=4", 96),
    ("color_upsampler", "v5e:16x16", "data=256", 6144),
    ("spatial_upsampler", "v5e:2x2", "data=2,spatial=2", 4),
    ("spatial_upsampler", "v5e:16x16", "data=32,spatial=8", 32),
]


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize(("network", "topology", "mesh", "batch_size"), TOPOLOGIES)
def test_paper_size_steps_fit_and_gather_no_batch(network, topology, mesh, batch_size):
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    config = compiling.load_config(pathlib.Path(ROOT / "configs" / f"{network}.py"), ["remat=block"])
    config = dataclasses.replace(config, dtype="bfloat16", batch_size=batch_size)
    devices, hbm_gib = compiling.topology_devices(topology)
    sizes = compiling.parse_mesh(mesh)
    result, text = compiling.compile_step(config, devices, sizes, hbm_gib)
    assert result.fits
    share = batch_size // sizes["data"]
    assert compiling.gathered_batches(text, share, (config.resolution // 4) ** 2 // sizes["spatial"]) == []
    assert ("all-to-all" in result.collectives) == (sizes["spatial"] > 1)
