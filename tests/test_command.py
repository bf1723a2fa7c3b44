"""The one command and the public names."""

import importlib.util

import pytest
from helpers import run

import coltran_jax
from coltran_jax.__main__ import COMMANDS, main


def test_all_commands_are_listed_and_there(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["coltran", "--help"])
    assert main() == 0
    listed = capsys.readouterr().out
    for name, (module, what) in COMMANDS.items():
        assert f"{name} " in listed
        assert what in listed
        assert importlib.util.find_spec(module)


def test_a_command_gets_its_options_and_its_status_is_returned(tmp_path):
    done = run("coltran_jax", "colorize", tmp_path / "none.png", "--output", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'none.png'}: no such file or folder\n"
    unknown = run("coltran_jax", "colourise")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: no command 'colourise'; expected one of colorize, ")


@pytest.mark.parametrize(
    ("command", "option"), [("train", "--restore_step"), ("evaluate", "--min_p"), ("evaluate", "--[no]own_luminance")]
)
def test_commands_that_take_configurations_tell_their_options(command, option):
    done = run("coltran_jax", command, "--help")
    assert done.returncode == 0, done.stderr
    assert option in done.stdout


@pytest.mark.parametrize("name", coltran_jax.__all__)
def test_public_names_are_there(name):
    assert getattr(coltran_jax, name).__doc__
