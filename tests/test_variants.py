"""The named variants of configs/: each builds, takes a step and samples."""

import dataclasses
import functools
import importlib.util
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, golden, run

from coltran_jax import config as configs
from coltran_jax.errors import ConfigError
from coltran_jax.networks.registry import NETWORKS, parameter_shapes
from coltran_jax.networks.upsampler import upsample
from coltran_jax.sampling import noise as noises
from coltran_jax.sampling import sampler
from coltran_jax.training import state as states
from coltran_jax.training.config import TrainConfig, from_dict
from coltran_jax.training.variants import read


def config_module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULES = {name: config_module(name) for name in NETWORKS}
ALL = [(network, variant) for network, module in MODULES.items() for variant in module.VARIANTS]


FILES = [
    path
    for path in sorted((ROOT / "configs").rglob("*.py"))
    if "sweeps" not in path.parts and path.name not in ("__init__.py", "common.py")
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT / "configs").as_posix())
def test_every_configuration_is_one_of_a_run(path):
    assert isinstance(from_dict(read(str(path)).to_dict()), TrainConfig)


def test_minis_stages_are_one_network_at_two_resolutions():
    names = ("content", "small", "full")
    stages = {name: from_dict(read(f"configs/mini/colorizer.py:{name}").to_dict()) for name in names}
    assert stages["content"].loss_factor == 0
    assert stages["small"].model == stages["content"].model
    assert configs.at_resolution(stages["small"].model, (64, 64)) == stages["full"].model


def variant(network, name) -> TrainConfig:
    return from_dict(MODULES[network].get_config(name).to_dict())


def smaller(config: TrainConfig) -> TrainConfig:
    """A quarter of the side, one layer, eight wide, with the proportions of the MLPs kept."""
    width = lambda part: {"hidden_size": 8, "num_heads": 2, "ff_size": part.ff_size // 64}  # noqa: E731
    side = {64: 16, 28: 28, 256: 64}
    resolution = tuple(side[x] for x in config.model.resolution)
    if config.network == "colorizer":
        encoder = dataclasses.replace(config.model.encoder, num_encoder_layers=1, **width(config.model.encoder))
        one = {"num_outer_layers": 1, "num_inner_layers": 1, "resolution": resolution, **width(config.model.decoder)}
        decoder = dataclasses.replace(config.model.decoder, **one)
        parts = {"hidden_size": 8, "encoder": encoder, "decoder": decoder}
    else:
        parts = {"num_encoder_layers": 1, **width(config.model)}
    model = dataclasses.replace(config.model, resolution=resolution, **parts)
    small = side[config.downsample_res]
    return dataclasses.replace(config, model=model, resolution=64, downsample_res=small, batch_size=2)


def one_step(config, state, images):
    return states.train_step(config, state, {"images": images, "mask": jnp.ones(2, jnp.float32)})


def one_result(config, params):
    model, (side, _) = states.network(config), config.model.resolution
    gray = jnp.zeros((1, side, side, 1), jnp.uint8)
    if config.network == "colorizer":
        z = sampler.encode(model, params, gray)
        return sampler.sample(model, params, z, noises.NoNoise(jnp.zeros((1, 1), jnp.int32))).coarse[0]
    return upsample(model, params, gray, jnp.zeros((1, side, side, 3), jnp.uint8), chunk=3)


def check_shapes(config, params, result):
    side = config.model.resolution[0]
    assert result.shape == ((1, side, side) if config.network == "colorizer" else (1, side, side, 3))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, parameter_shapes(config.model))


@pytest.mark.parametrize(("network", "name"), ALL)
def test_every_variant_can_take_a_step_and_sample(network, name):
    config = smaller(variant(network, name))
    state = jax.eval_shape(lambda: nn.unbox(states.create(config)))
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8)
    after, _ = jax.eval_shape(functools.partial(one_step, config), state, images)
    check_shapes(config, after.params, jax.eval_shape(functools.partial(one_result, config), after.params))


# One of each network, and those whose losses or layers no other variant has.
COMPUTED = [("colorizer", name) for name in ("coltran", "conv_stem", "parallel_0")]
COMPUTED += [(network, "coltran") for network in MODULES if network != "colorizer"]


@pytest.mark.parametrize(("network", "name"), COMPUTED)
def test_a_variant_takes_a_step_and_samples(network, name):
    config = smaller(variant(network, name))
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    state = nn.unbox(states.create(config))
    params = state.params
    after, metrics = jax.jit(functools.partial(one_step, config))(state, images)
    expected = metrics.loss_bits
    if network == "colorizer":
        expected = config.loss_factor * metrics.loss_bits + config.encoder_loss_factor * metrics.encoder_loss_bits
    np.testing.assert_allclose(metrics.total_loss_bits, expected, rtol=1e-6)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(params), strict=True))
    check_shapes(config, after.params, one_result(config, after.params))


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("coltran", "default"),
        ("baseline", "baseline_addition"),
        ("no_cln", "no_cln"),
        ("no_cmlp", "no_cmlp"),
        ("no_catt", "no_catt"),
        ("catt_v", "catt_only_v"),
        ("shift_only", "shift_only"),
        ("cln_mean", "cln_mean_pool"),
    ],
)
def test_ablations_are_those_of_the_release(name, reference):
    released = json.loads(str(golden(f"core_{reference}")["config"]))
    found = configs.to_dict(variant("colorizer", name).model)
    switches = {key: value for key, value in found["decoder"].items() if key.startswith("cond_") or key == "skip"}
    del switches["cond_att_shift"]
    if not any(switches[f"cond_att_{z}"] for z in "qkv"):
        del switches["cond_att_scale"]
    assert switches == {key: released["decoder"][key] for key in switches}
    assert found["stage"] == released["stage"]


def test_variants_differ_from_their_base_as_they_say():
    base = variant("colorizer", "coltran")
    large = variant("colorizer", "baseline_large").model
    assert (large.encoder.ff_size, large.decoder.ff_size) == (4 * base.model.encoder.ff_size,) * 2
    assert variant("colorizer", "coltran_s").model.resolution == (28, 28)
    for weight in (0.0, 0.001, 0.01, 0.1, 0.5):
        config = variant("colorizer", f"parallel_{weight:g}")
        assert (config.loss_factor, config.encoder_loss_factor) == (1 - weight, weight)
        assert config.model == base.model
    for network in ("color_upsampler", "spatial_upsampler", "joint_upsampler"):
        shapes = parameter_shapes(variant(network, "no_gray").model)
        assert "gray_embedding" not in shapes
        assert shapes["projection"]["kernel"].shape == (512, 512)


@pytest.mark.parametrize(("asked", "message"), [("help", "variants: coltran, "), ("no_such", "no variant 'no_such'")])
def test_an_unknown_name_lists_the_variants(asked, message):
    done = run("coltran_jax", "train", f"--config=configs/colorizer.py:{asked}", "--workdir=/nonexistent")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert all(name in done.stderr for name in MODULES["colorizer"].VARIANTS)


@pytest.mark.parametrize(
    ("text", "variant", "message"),
    [
        ("def get_config():\n    fields = {}\n    return fields['none']\n", "", r"broken.py:3: KeyError: 'none'"),
        ("import nothing_of_that_name\n", "", r"broken.py:1: ModuleNotFoundError: No module named"),
        ("\ndef get_config(:\n", "", r"broken.py:2: invalid syntax"),
        ("def get_config():\n    return 3\n", ":small", r"broken.py has no variants, got 'small'"),
    ],
)
def test_errors_in_a_configuration_are_told_with_their_line(tmp_path, text, variant, message):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read(f"{tmp_path / 'broken.py'}{variant}")


def test_sequences_can_be_given_as_flags():
    done = run(
        "coltran_jax",
        "train",
        "--config=configs/mini/colorizer.py:small",
        "--workdir=/nonexistent",
        "--config.model.encoder.conv_stem=(8,16)",
        "--config.data.path=/none",
    )
    assert done.returncode == 2
    assert done.stderr == "error: data.path is '/none': no such folder; give the folder of images\n"
