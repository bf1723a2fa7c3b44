"""Pallas kernels are compared with XLA's operations before a run relies on them."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import pytest
from helpers import ROOT
from jax.experimental.pallas import tpu as pltpu
from PIL import Image
from test_runs import small_run
from test_training import tiny_run

from coltran_jax.cli.configuration import read_config
from coltran_jax.errors import TrainingError, WeightsError
from coltran_jax.networks.registry import parameter_shapes
from coltran_jax.nn import block_kernel
from coltran_jax.nn.compute import Compute
from coltran_jax.training import kernel_check, loop
from coltran_jax.training.config import for_platform


def test_a_run_takes_kernels_and_bfloat16_on_tpus():
    config = tiny_run("colorizer")
    found = [for_platform(config, platform) for platform in ("tpu", "gpu", "cpu")]
    expected = [("pallas", "bfloat16"), ("xla", "bfloat16"), ("xla", "float32")]
    assert [(run.backend, run.dtype) for run in found] == expected
    assert for_platform(dataclasses.replace(config, dtype="float32"), "tpu").backend == "xla"
    chosen = dataclasses.replace(config, backend="xla", dtype="bfloat16")
    assert for_platform(chosen, "tpu") == chosen


@pytest.mark.parametrize(
    ("network", "block", "axis", "dtype", "room"),
    [
        ("spatial_upsampler", ("stack", "blocks_1"), "column", "bfloat16", True),
        ("spatial_upsampler", ("stack", "blocks_1"), "column", "float32", False),
        ("colorizer", ("inner_decoder", "blocks_0"), "row", "bfloat16", True),
        ("colorizer", ("inner_decoder", "blocks_0"), "row", "float32", False),
    ],
)
def test_blocks_of_the_paper_have_room_in_bfloat16(monkeypatch, network, block, axis, dtype, room):
    # As v5e has it. Compiled for v5e, the gradients in float32 took 82 and 83 MiB, and 64 are given.
    monkeypatch.setattr(pltpu, "get_tpu_info", lambda: types.SimpleNamespace(vmem_capacity_bytes=128 * 2**20))
    model = read_config(str(ROOT / "configs" / f"{network}.py"), []).model
    params = functools.reduce(lambda tree, name: tree[name], block, parameter_shapes(model))
    shape = (1, *model.resolution, 512)
    assert block_kernel.has_room(params, shape, axis, jnp.dtype(dtype), False, gradient=True) == room


@pytest.mark.slow
@pytest.mark.parametrize("network", ["colorizer", "color_upsampler"])
def test_kernels_pass(network):
    config = tiny_run(network, backend="pallas_interpreted", dtype="bfloat16", remat="block")
    errors = kernel_check.gradient_errors(config)
    assert 1e-3 < max(errors.values()) < kernel_check.TOLERANCE


@pytest.mark.slow
def test_a_wrong_gradient_of_a_kernel_is_named(monkeypatch):
    right = block_kernel.attention_gradient

    def wrong(*args):
        of_logits, *others = right(*args)
        return (0 * of_logits, *others)

    monkeypatch.setattr(block_kernel, "attention_gradient", wrong)
    message = r"of stack/blocks_./attention/relative_bias that is off by 1 of its norm, expected at most 0\.15: train"
    with pytest.raises(TrainingError, match=message):
        kernel_check.check_kernels(tiny_run("color_upsampler", backend="pallas_interpreted"))


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (jax.errors.JaxRuntimeError("INTERNAL: Mosaic\nat ..."), r"do not run on cpu \(INTERNAL: Mosaic\): train with"),
        (None, "off by nan of its norm"),
    ],
)
def test_a_run_whose_kernels_fail_starts_nothing(tmp_path, monkeypatch, raised, message):
    def errors(config):
        assert config.backend == "pallas"
        if raised:
            raise raised
        return {"stack": float("nan")}

    monkeypatch.setattr(kernel_check, "gradient_errors", errors)
    monkeypatch.setattr(Compute, "check_platform", lambda self, platform: None)
    for number in range(12):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{number}.png")
    run = small_run(tmp_path, backend="pallas")
    with pytest.raises(TrainingError, match=message):
        loop.train(run, tmp_path / "run")
    # That takes a minute; what can be refused at once is not asked to wait for it.
    with pytest.raises(WeightsError, match=r"none\.safetensors"):
        loop.train(run, tmp_path / "run", init_from=tmp_path / "none.safetensors")
    assert not (tmp_path / "run").exists()
