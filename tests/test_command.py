"""The one command and the public names."""

import importlib.util
import subprocess
import sys

import pytest
from helpers import ROOT, run

import coltran_jax
from coltran_jax.__main__ import COMMANDS, main


def test_all_commands_are_listed_and_there(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name, what in COMMANDS.items():
        assert f"{name} " in listed
        assert what in listed
        assert importlib.util.find_spec(f"coltran_jax.cli.{name}")


def test_a_command_gets_its_options_and_its_status_is_returned(tmp_path):
    done = run("coltran_jax", "colorize", tmp_path / "none.png", "--output", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'none.png'}: no such file or folder\n"
    unknown = run("coltran_jax", "colourise")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: no command 'colourise'; expected one of colorize, ")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["colorize"], "--min_p X"),
        (["train"], "--restore_step N"),
        (["evaluate", "images"], "--own_luminance"),
        (["evaluate", "run"], "--config.FIELD=VALUE"),
        (["evaluate", "folders"], "--features_weights FILE"),
        (["study", "build"], "--practice N"),
        (["convert"], "--reference DIR"),
        (["export"], "--min_p X"),
    ],
)
def test_commands_list_their_options(capsys, command, option):
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"coltran_jax.cli.{command[0]}").main([*command[1:], "--help"])
    assert option in capsys.readouterr().out


def test_a_list_of_options_comes_without_what_computes():
    code = "import sys, coltran_jax.__main__ as m\ntry: m.main(['train', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'jax', 'flax', 'tensorflow', 'absl'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", coltran_jax.__all__)
def test_public_names_are_there(name):
    assert getattr(coltran_jax, name).__doc__
