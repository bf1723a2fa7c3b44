import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import moved_parameters, tiny_colorizer, tiny_upsampler

from coltran_jax import config as configs
from coltran_jax.checkpoints.bundles import Bundle, load_bundle, save_bundle
from coltran_jax.errors import WeightsError
from coltran_jax.networks.chain import PUBLISHED


@pytest.fixture(scope="module")
def bundle():
    networks = {
        "colorizer": tiny_colorizer(),
        "color_upsampler": tiny_upsampler(configs.ColorUpsamplerConfig, (8, 6)),
    }
    return Bundle(networks, {name: moved_parameters(config) for name, config in networks.items()})


@pytest.fixture
def path(bundle, tmp_path):
    save_bundle(tmp_path / "bundle.safetensors", bundle)
    return tmp_path / "bundle.safetensors"


def rewrite(path, change):
    """Writes a bundle again with its tensors and its description changed, and without a checksum."""
    tensors, description = stored(path)
    del description["checksum"]
    change(tensors, description)
    safetensors.numpy.save_file(tensors, path, metadata={"coltran_jax": json.dumps(description)})


def stored(path):
    with safetensors.safe_open(path, "numpy") as file:
        return safetensors.numpy.load_file(path), json.loads(file.metadata()["coltran_jax"])


def test_there_and_back(bundle, path):
    loaded = load_bundle(path)
    assert loaded.configs == bundle.configs
    jax.tree.map(np.testing.assert_array_equal, loaded.params, bundle.params)


def test_recommended_sampling_options_are_kept(bundle, path):
    save_bundle(path, dataclasses.replace(bundle, recommended={"temperature": 0.9, "min_p": 0.05}))
    assert load_bundle(path).recommended == {"temperature": 0.9, "min_p": 0.05}


def test_a_table_for_guidance_is_kept(bundle, path):
    table = np.log(np.random.default_rng(0).dirichlet(np.ones(512), 256)).astype(np.float32)
    save_bundle(path, dataclasses.replace(bundle, recommended={"guidance": 0.5}, gray_table=table))
    loaded = load_bundle(path)
    np.testing.assert_array_equal(loaded.gray_table, table)
    assert loaded.recommended == {"guidance": 0.5}
    jax.tree.map(np.testing.assert_array_equal, loaded.params, bundle.params)


def test_half_the_bits_take_half_the_space(bundle, path):
    whole = path.stat().st_size
    save_bundle(path, bundle, np.float16)
    assert path.stat().st_size < 0.6 * whole
    loaded = load_bundle(path)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float16).astype(a.dtype)),
        loaded.params,
        bundle.params,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, d: t.pop("colorizer/head/bias"), "missing head/bias"),
        (lambda t, d: t["colorizer/head/bias"].fill(np.nan), "colorizer/head/bias has values that are not finite"),
        (lambda t, d: t.update({"colorizer/head/bias": np.ones(512, int)}), "head/bias is int.*, expected floating"),
        (lambda t, d: t.update({"colorizer/head": np.ones(2)}), "colorizer/head is a tensor and has colorizer/head/"),
        (lambda t, d: d.update(networks=["colorizer"]), "expected configurations by name"),
        (
            lambda t, d: d["networks"]["colorizer"]["encoder"].update(num_encoder_layers=10**9),
            "num_encoder_layers is 1000000000, but no dimension of the weights is above 512",
        ),
        (lambda t, d: d.update(recommended={"min_p": 2.0}), "recommended sampling options: min_p must be from 0 to 1"),
        (lambda t, d: d.update(recommended={"samples": 2}), "expected temperature, min_p and guidance alone"),
        (
            lambda t, d: d.update(recommended={"guidance": 0.5}),
            "guidance is recommended, but there is no table of colours",
        ),
        (lambda t, d: t.update(gray_table=np.zeros((512, 256))), r"gray_table is \(512, 256\), expected \(256, 512\)"),
        (lambda t, d: t.update({"colorizer/extra": np.ones(2)}), "left over extra"),
        (lambda t, d: t.update({"colorizer/head/bias": np.ones(3)}), r"head/bias is \(3,\), expected \(512,\)"),
        (lambda t, d: t.update({"other/x": np.ones(3)}), "weights without a configuration: other"),
        (lambda t, d: d["networks"]["colorizer"].pop("stage"), "missing field stage"),
        (lambda t, d: d["networks"].update(resnet={}), "unknown network 'resnet'"),
        (lambda t, d: d.update(version=2), "bundle version 2, expected 1"),
        (lambda t, d: d.pop("networks"), "without a coltran_jax configuration"),
    ],
)
def test_what_does_not_fit_is_named(path, change, message):
    rewrite(path, change)
    with pytest.raises(WeightsError, match=message):
        load_bundle(path)


def test_bundles_from_before_a_field_was_added_load(bundle, path):
    rewrite(path, lambda t, d: d["networks"]["color_upsampler"].pop("use_gray"))
    assert load_bundle(path).configs == bundle.configs


def test_other_weights_than_those_written_are_refused(path):
    tensors, description = stored(path)
    tensors["colorizer/head/bias"][7] += 1e-3
    safetensors.numpy.save_file(tensors, path, metadata={"coltran_jax": json.dumps(description)})
    with pytest.raises(WeightsError, match=r"not those that were written \(checksum\)"):
        load_bundle(path)


def test_missing_networks_are_named(path):
    with pytest.raises(WeightsError, match="has color_upsampler, colorizer, lacks spatial_upsampler"):
        load_bundle(path, required=list(PUBLISHED))


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b"", lambda b: b"\xff" * 64, lambda b: b[:20]])
def test_damaged_files_are_refused(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match="damaged"):
        load_bundle(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        load_bundle(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="is a folder"):
        load_bundle(tmp_path)


def test_other_safetensors_are_refused(tmp_path):
    safetensors.numpy.save_file({"x": np.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="without a coltran_jax configuration"):
        load_bundle(tmp_path / "x.safetensors")


def test_nothing_is_written_for_weights_that_do_not_fit(bundle, tmp_path):
    wrong = Bundle(bundle.configs, {**bundle.params, "colorizer": {}})
    with pytest.raises(WeightsError, match="missing"):
        save_bundle(tmp_path / "wrong.safetensors", wrong)
    assert list(tmp_path.iterdir()) == []
