"""The documents: their links lead somewhere, their Python code runs, and their commands have options that exist."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

import coltran_jax
from coltran_jax.cli import colorize, configuration, convert, demo, evaluate, export, merge, study, train

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PARSERS = {
    "colorize": colorize.parse_args,
    "convert": convert.parse_args,
    "evaluate": lambda argv: configuration.parse_with_config(evaluate.parser(), argv),
    "demo": demo.parse_args,
    "export": lambda argv: configuration.parse_with_config(export.parser(), argv),
    "merge": merge.parse_args,
    "study": study.parse_args,
    "train": lambda argv: configuration.parse_with_config(train.parser(), argv),
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The words of all `coltran_jax` commands, optional ones included."""
    found = []
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r"[\[\]]", "", line), comments=True)
            if words[:3] == ["python", "-m", "coltran_jax"]:
                found.append(words[3:])
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("http") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_have_options_that_exist(path):
    for name, *options in commands(path.read_text()):
        # A placeholder of the document, not a word of the command line.
        if not any(word.startswith(("$", '"$')) for word in options):
            PARSERS[name](options)


def test_most_documents_have_commands():
    assert sum(bool(commands(path.read_text())) for path in DOCUMENTS) >= 6


@pytest.mark.parametrize("name", ["README.md", "docs/colorize.md"])
def test_python_code_runs(name, tmp_path, monkeypatch, tiny_bundle_path):
    shutil.copy(tiny_bundle_path, tmp_path / "coltran.safetensors")
    monkeypatch.chdir(tmp_path)
    # Small networks in place of `mini`: what is tested is the code.
    load = coltran_jax.load_pipeline
    monkeypatch.setattr(coltran_jax, "load_pipeline", lambda path=tiny_bundle_path, **kwargs: load(path, **kwargs))
    for code in blocks((ROOT / name).read_text(), "python"):
        exec(code, {"images": [np.zeros((20, 30), np.uint8)]})


@pytest.mark.slow
def test_the_notebook_runs():
    cells = json.loads((ROOT / "examples" / "colorize.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code.append("assert result.images.shape == (3, *image.shape)")
    # As users compile it: these are networks of a real size.
    env = {**os.environ, "MPLBACKEND": "Agg", "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    subprocess.run([sys.executable, "-c", "\n".join(code)], cwd=ROOT, env=env, check=True)
