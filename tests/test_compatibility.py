"""A bundle and a checkpoint that an earlier state of the code wrote: they load, and give what they gave then."""

import shutil

import jax
import numpy as np
import pytest
from helpers import ROOT

import coltran_jax
from coltran_jax import config as configs
from coltran_jax import partitioning
from coltran_jax.training.checkpoints import Checkpoints

EARLIER = ROOT / "tests" / "compatibility"


@pytest.fixture(scope="module")
def expected():
    with np.load(EARLIER / "expected.npz") as file:
        return dict(file)


def test_a_bundle_of_earlier_gives_the_same_images(expected):
    pipeline = coltran_jax.load_pipeline(EARLIER / "bundle.safetensors", devices=jax.devices()[:1])
    (result,) = pipeline.colorize([expected["gray"]], samples=2, seed=3, square=True)
    np.testing.assert_array_equal(result.coarse, expected["coarse"])
    np.testing.assert_array_equal(result.images, expected["images"])


def test_a_checkpoint_of_earlier_is_restored(expected, tmp_path):
    shutil.copytree(EARLIER / "run", tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run", read_only=True)
    config = checkpoints.config(2)
    mesh = partitioning.make_mesh(configs.to_dict(config.mesh), jax.devices()[:1])
    state = checkpoints.restore(2, config, mesh)
    assert int(state.step) == 2
    found = {
        "average/" + "/".join(str(key.key) for key in path): value
        for path, value in jax.tree_util.tree_leaves_with_path(state.ema_params)
    }
    assert found.keys() == {key for key in expected if key.startswith("average/")}
    for key, value in found.items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)
