"""The importer: the golden checkpoints, and every way in which variables can fail to fit."""

import re
import shutil

import jax
import numpy as np
import pytest
import yaml
from helpers import GOLDEN, golden, golden_config, run, variables

from coltran_jax.checkpoints import release
from coltran_jax.checkpoints.bundles import load_bundle
from coltran_jax.checkpoints.release import parameters_from_variables
from coltran_jax.cli import convert
from coltran_jax.errors import CheckpointError
from coltran_jax.networks.chain import PUBLISHED


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", PUBLISHED)
def test_checkpoint_gives_the_averages(name):
    found, config, params = release.load_reference(GOLDEN / "checkpoints" / name)
    values = golden(f"train_{name}")
    assert found == name
    assert config == golden_config(values["config"])
    ema = variables(values, "ema")
    frozen = {key: v for key, v in variables(values, "final").items() if "/normalize/" in key}
    equal(params, parameters_from_variables(config, {**frozen, **ema}, ema=False))
    raw = parameters_from_variables(config, variables(values, "final"), ema=False)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(raw), strict=True))


@pytest.mark.parametrize("name", PUBLISHED)
def test_there_and_back(name):
    _, config, params = release.load_reference(GOLDEN / "checkpoints" / name)
    canonical = release.variables_from_parameters(config, params)
    assert sum(v.size for v in canonical.values()) == sum(x.size for x in jax.tree.leaves(params))
    back = {re.sub(r"#(\d+)", lambda m: f"_{m[1]}", key): v for key, v in canonical.items()}
    equal(parameters_from_variables(config, back, ema=False), params)


@pytest.fixture(scope="module")
def checkpoint():
    folder = GOLDEN / "checkpoints" / "colorizer"
    return release.read_config(folder / "config.yaml")[1], release.read_checkpoint(folder)


def renumbered(names, offsets):
    """Every automatic number moved on, as where the process had built other networks before."""

    def move(match):
        base, number = match[1], int(match[2] or 0)
        return f"{base}_{number + offsets.get(base, 0)}" if number + offsets.get(base, 0) else base

    pattern = (
        r"\b(dense|layer_normalization|conditional_layer_norm|self_attention_nd|position_embed)(?:_(\d+))?(?=[/:])"
    )
    return {re.sub(pattern, move, name): value for name, value in names.items()}


@pytest.mark.parametrize("offset", [1, 7, 95])
def test_automatic_numbers_may_start_anywhere(checkpoint, offset):
    config, values = checkpoint
    offsets = {"dense": offset, "layer_normalization": 2 * offset, "self_attention_nd": 3, "position_embed": offset}
    moved = renumbered(values, {**offsets, "conditional_layer_norm": offset + 1})
    assert moved.keys() != values.keys()
    equal(parameters_from_variables(config, moved), parameters_from_variables(config, values))


AVERAGE = "/ExponentialMovingAverage:0"


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (lambda v: v.pop(f"col_tran_core/auto_logits/bias{AVERAGE}"), ["auto_logits/bias has no EMA"]),
        (
            lambda v: [v.pop(f"col_tran_core/auto_logits/bias{end}") for end in (AVERAGE, ":0")],
            ["missing col_tran_core (number 1 in order)/auto_logits/bias for head/bias"],
        ),
        (lambda v: v.update({f"dense_99/kernel{AVERAGE}": np.ones((2, 2))}), ["left over dense_99/kernel"]),
        (
            lambda v: v.update({f"dense_2/kernel{AVERAGE}": np.ones((2, 3)), f"x/y{AVERAGE}": np.ones(1)}),
            ["dense_2/kernel is (2, 3), expected (24, 32)", "left over x/y"],
        ),
        (
            lambda v: v.update(
                {"col_tran_core/outer_decoder/conditional_layer_norm/normalize/gamma:0": np.full(24, 2.0)}
            ),
            ["normalize/gamma is not all 1"],
        ),
    ],
)
def test_what_does_not_fit_is_listed(checkpoint, change, messages):
    config, values = checkpoint
    values = dict(values)
    change(values)
    with pytest.raises(CheckpointError) as error:
        parameters_from_variables(config, values)
    for message in messages:
        assert message in str(error.value)


def test_another_configuration_does_not_fit(checkpoint):
    config, values = checkpoint
    import dataclasses

    wider = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, num_inner_layers=3))
    with pytest.raises(CheckpointError, match=r"missing .*mask_row_att_2"):
        parameters_from_variables(wider, values)
    plain = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, cond_mlp=""))
    with pytest.raises(CheckpointError, match=r"left over .*affine_c_0"):
        parameters_from_variables(plain, values)


def test_command_line_converts_the_three_networks_to_a_bundle(tmp_path):
    output = tmp_path / "bundle.safetensors"
    done = run("coltran_jax", "convert", "--reference", GOLDEN / "checkpoints", "--output", output)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("parameters from") == 3
    bundle = load_bundle(output, required=list(PUBLISHED))
    for name in PUBLISHED:
        _, config, params = release.load_reference(GOLDEN / "checkpoints" / name)
        assert bundle.configs[name] == config
        equal(bundle.params[name], params)


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(GOLDEN / "checkpoints" / "color_upsampler", tmp_path / "one")
    return tmp_path / "one"


def converting(folder, **kwargs):
    return list(release.convert([folder], folder.parent / "out.safetensors", **kwargs))


def test_configuration_may_lie_elsewhere(folder, tmp_path):
    (folder / "config.yaml").rename(tmp_path / "elsewhere.yaml")
    with pytest.raises(CheckpointError, match="give the network's configuration with --config"):
        converting(folder)
    assert converting(folder, config_path=tmp_path / "elsewhere.yaml")
    # The part that describes the network alone will do.
    whole = yaml.safe_load((tmp_path / "elsewhere.yaml").read_text())
    (tmp_path / "part.yaml").write_text(yaml.safe_dump(whole["model"]))
    assert converting(folder, config_path=tmp_path / "part.yaml", overwrite=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "checkpoint").unlink(), "no checkpoint there"),
        (lambda f: [p.unlink() for p in f.glob("model-1*")], "no checkpoint there"),
        (lambda f: (f / "model-1.data-00000-of-00001").write_bytes(b"short"), "damaged checkpoint"),
        (lambda f: (f / "model-1.index").write_bytes(b"short"), "damaged checkpoint"),
        (lambda f: (f / "config.yaml").write_text("{"), "cannot be read as YAML"),
        (lambda f: (f / "config.yaml").write_text("model: {name: resnet}"), "model.name is 'resnet'"),
        (lambda f: (f / "config.yaml").write_text("model: {name: color_upsampler}"), "missing field model.hidden_size"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_damaged_folders_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        converting(folder)
    assert not (folder.parent / "out.safetensors").exists()


def test_checkpoints_from_another_machine_are_read_and_told(folder, caplog):
    expected = release.load_reference(folder)[2]
    (folder / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/run/model-1"\n')
    equal(release.load_reference(folder)[2], expected)
    assert "names /elsewhere/run/model-1, which is not there; model-1 beside it is read" in caplog.text


def test_a_network_without_its_checkpoint_file_is_not_left_out(tmp_path):
    shutil.copytree(GOLDEN / "checkpoints", tmp_path / "all")
    (tmp_path / "all" / "colorizer" / "checkpoint").unlink()
    with pytest.raises(CheckpointError, match=r"all/colorizer: no file named checkpoint there"):
        list(release.convert([tmp_path / "all"], tmp_path / "out.safetensors"))


def test_outputs_are_not_replaced_unasked(folder, capsys):
    converting(folder)
    with pytest.raises(CheckpointError, match="exists; give --overwrite"):
        converting(folder)
    args = ["--reference", str(folder), "--output", str(folder.parent / "out.safetensors")]
    assert convert.main(args) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    (folder / "config.yaml").rename(folder.parent / "config.yaml")
    assert convert.main([*args, "--overwrite", "--config", str(folder.parent / "config.yaml")]) == 0
