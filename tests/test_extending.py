"""What docs/extending.md adds works: each section is applied, and what it adds is used."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import ROOT, moved_parameters, tiny_colorizer, tiny_upsampler
from PIL import Image

from coltran_jax import config as configs
from coltran_jax.checkpoints.bundles import Bundle, load_bundle, save_bundle
from coltran_jax.data.config import DataConfig
from coltran_jax.networks import registry
from coltran_jax.pipeline import load_pipeline
from coltran_jax.training.checkpoints import export
from coltran_jax.training.config import TrainConfig, from_dict
from coltran_jax.training.loop import train


def block(name: str) -> str:
    """Returns the code or the patch of a section."""
    text = (ROOT / "docs" / "extending.md").read_text()
    return re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", text, re.DOTALL).group(1)


@pytest.fixture
def patched(tmp_path):
    """A function that applies a section's patch to a copy of the package, and runs Python code there."""
    for folder in ("coltran_jax", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))

    def run_patched(name: str, code: str) -> str:
        subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=block(name), text=True, check=True)
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'tests'}"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_patched


def test_a_dataset_is_trained_on(patched, tmp_path):
    (tmp_path / "coltran_jax" / "data" / "arrays.py").write_text(block("dataset_file"))
    images = np.random.default_rng(0).integers(0, 256, (6, 20, 20, 3), np.uint8)
    np.savez(tmp_path / "images.npz", train=images[:4], holdout=images[4:])
    code = f"""
from coltran_jax.data import loader, sources
from coltran_jax.data.config import DataConfig
config = DataConfig(dataset="arrays", path={str(tmp_path / "images.npz")!r}, num_threads=0)
batches = loader.training_batches(config, sources.open_source(config, "train"), size=20, batch_size=4, seed=0)
print(sorted(int(image.sum()) for image in next(batches)["images"]))
print(len(sources.open_source(config, "holdout")))
"""
    totals, held_out = patched("dataset", code).splitlines()
    assert totals == str(sorted(images[:4].sum(axis=(1, 2, 3)).tolist()))
    assert held_out == "2"


def test_a_metric_is_a_column_and_in_json(patched):
    code = """
import numpy as np
from coltran_jax.evaluation import measures, summary
truths = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
record = measures._against_truth("gray", truths[:, None], truths)
names = (*summary.OF_TRUTH, "colorfulness", "chroma", "specks", "bars")
record |= {("truth", name): np.zeros(2) for name in names}
record["truth", "reliability"], record["truth", "coverage"] = np.ones((2, 15, 3)), np.ones((2, 1))
record["as trained", "bits"], record["as trained", "coverage"] = np.zeros((2, 1)), np.zeros((2, 0))
found = summary.summarize("own", ["gray"], record)
print(found.rows[0].metrics["lightness_error"].mean)
print(summary.cells(found)[0])
"""
    value, titles = patched("metric", code).splitlines()
    assert value == "0.0"
    assert "'L error'" in titles


def test_a_mesh_axis_shards_what_its_row_says(patched):
    code = """
import jax
from helpers import tiny_colorizer
from coltran_jax import config as configs
from coltran_jax import partitioning
from coltran_jax.training.checkpoints import abstract_state
from coltran_jax.training.config import MeshConfig, TrainConfig
model = tiny_colorizer((8, 8))
config = TrainConfig("colorizer", model, downsample_res=8, resolution=32, mesh=MeshConfig(vocabulary=2))
mesh = partitioning.make_mesh(configs.to_dict(config.mesh), jax.devices()[:2])
state = abstract_state(config, mesh)
print(dict(mesh.shape))
print(state.params["head"]["kernel"].sharding.spec, state.params["head"]["kernel"].sharding.shard_shape((12, 512)))
"""
    shape, kernel = patched("mesh", code).splitlines()
    assert shape == "{'data': 1, 'fsdp': 1, 'tensor': 1, 'vocabulary': 2, 'spatial': 1}"
    assert kernel.endswith("(12, 256)")


def test_a_conditioning_switch_is_a_variant(patched):
    code = """
import jax
import numpy as np
from helpers import moved_parameters, tiny_colorizer
from coltran_jax import config as configs
from coltran_jax.networks.registry import build
from coltran_jax.training.variants import read
assert not read("configs/colorizer.py:cln_scale").model.decoder.cond_ln_shift
old = configs.to_dict(tiny_colorizer((8, 8)))
del old["decoder"]["cond_ln_shift"]
assert configs.from_dict(configs.ColorizerConfig, old, optional=configs.ADDED_FIELDS) == tiny_colorizer((8, 8))
gray, colors = np.zeros((1, 8, 8, 1), np.uint8), np.zeros((1, 8, 8), np.int32)
params = moved_parameters(tiny_colorizer((8, 8)))
with_shift, without = (
    build(tiny_colorizer((8, 8), cond_ln_shift=shift)).apply({"params": params}, gray, colors)[0]
    for shift in (True, False)
)
print(bool(np.abs(with_shift - without).max() > 1e-3))
"""
    assert patched("switch", code) == "True\n"


@pytest.fixture
def conv_upsampler(tmp_path, monkeypatch):
    (tmp_path / "conv_upsampler.py").write_text(block("network"))
    spec = importlib.util.spec_from_file_location("conv_upsampler", tmp_path / "conv_upsampler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(registry._NETWORKS, "conv_upsampler", module.ConvUpsamplerNetwork())
    return module


def test_a_network_of_its_own_file_is_trained_exported_and_used(conv_upsampler, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(images / f"{number}.png")
    model = conv_upsampler.ConvUpsamplerConfig(hidden_size=4, resolution=(16, 16))
    config = TrainConfig(
        "conv_upsampler",
        model,
        batch_size=8,
        eval_batch_size=8,
        max_train_steps=2,
        resolution=32,
        downsample_res=16,
        log_images_every_steps=2,
        data=DataConfig(dataset="folder", path=str(images), holdout_fraction=0.3, num_threads=1),
    )
    assert from_dict(configs.to_dict(config)) == config
    train(config, tmp_path / "run")
    list(export({"conv_upsampler": tmp_path / "run"}, tmp_path / "one.safetensors"))
    trained = load_bundle(tmp_path / "one.safetensors")
    networks = {
        "colorizer": tiny_colorizer((16, 16)),
        "spatial_upsampler": tiny_upsampler(configs.SpatialUpsamplerConfig, (32, 32)),
    }
    params = {name: moved_parameters(network) for name, network in networks.items()}
    whole = Bundle({**networks, **trained.configs}, {**params, **trained.params})
    save_bundle(tmp_path / "all.safetensors", whole)
    pipeline = load_pipeline(tmp_path / "all.safetensors", devices=jax.devices()[:1])
    result = pipeline.colorize([rng.integers(0, 256, (20, 30), np.uint8)])[0]
    assert result.images.shape == (1, 20, 30, 3)
    assert result.fine.shape == (1, 16, 16, 3)
