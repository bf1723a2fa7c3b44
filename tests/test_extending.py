"""The network of docs/extending.md: trained, exported, and part of a pipeline."""

import importlib.util
import re

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
from coltran_jax.training.config import TrainConfig, from_dict
from coltran_jax.training.exporting import export
from coltran_jax.training.loop import train


@pytest.fixture
def conv_upsampler(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "extending.md").read_text()
    code = re.search(r"<!-- network -->\n```python\n(.*?)```", text, re.DOTALL).group(1)
    (tmp_path / "conv_upsampler.py").write_text(code)
    spec = importlib.util.spec_from_file_location("conv_upsampler", tmp_path / "conv_upsampler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(registry._NETWORKS, "conv_upsampler", module.ConvUpsamplerNetwork())
    return module


def test_a_network_of_its_own_file_is_trained_exported_and_used(conv_upsampler, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(pictures / f"{number}.png")
    model = conv_upsampler.ConvUpsamplerConfig(hidden_size=4, resolution=(16, 16))
    config = TrainConfig(
        "conv_upsampler",
        model,
        batch_size=8,
        eval_batch_size=8,
        max_train_steps=2,
        resolution=32,
        downsample_res=16,
        log_pictures_every_steps=2,
        data=DataConfig(dataset="folder", path=str(pictures), holdout_fraction=0.3, num_threads=1),
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
