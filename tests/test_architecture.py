"""Imports go one way: docs/architecture.md has the order, and why."""

import ast
import itertools
import re

import pytest
from helpers import ROOT

PACKAGE = ROOT / "coltran_jax"
MODULES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob("*.py"))


def layers():
    """Names of the layers, the lowest first, as the document lists them."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    block = re.search(r"<!-- layers -->\n```\n(.*?)```", text, re.DOTALL).group(1)
    return [line.split()[0].removesuffix("/").removesuffix(".py") for line in block.splitlines() if line[:1].strip()]


def layer_of(module):
    """coltran_jax.nn.axial -> nn; of the package itself, its face, the highest."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from names if node.module == "coltran_jax" else (node.module,)


def test_every_module_is_in_a_layer_and_the_other_way_round():
    found = {path.parts[1].removesuffix(".py") for path in MODULES} - {"__init__"}
    assert found == set(layers())


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_up_the_list(path):
    order = [*layers(), "__init__"]
    own = path.parts[1].removesuffix(".py")
    for module in imports(path):
        if module.startswith("coltran_jax"):
            assert order.index(layer_of(module)) <= order.index(own), f"{path} imports {module}, further down the list"


def test_no_two_files_differ_by_an_ending_alone():
    def stem(name):
        return re.sub(r"(ing|tion|s|e|er)$", "", name)

    for one, other in itertools.combinations([path for path in MODULES if path.stem != "__init__"], 2):
        if one.parent == other.parent:
            assert stem(one.stem) != stem(other.stem), f"{one} and {other}"


# A docstring that opens with one of these is a fragment that needs the signature to be understood.
FRAGMENTS = re.compile(
    r"(of|as|for|from|by|with|to|at|on|in|until|under|below|above|before|after|over|whether|how|what)\b", re.IGNORECASE
)


# One word for one thing, in code, messages and documents: what not to write, and what to write.
VOCABULARY = {
    r"pictures?": "image",
    r"polyak averages?|averages of (the )?(weights|parameters)|averaged (weights|parameters)": "EMA parameters",
    r"spread over": "shard, replicate",
    r"full rate": "peak rate, roofline",
    r"kept back": "held out",
    r"turn(s|ed|ing)? (round|into (lines|columns|rows))": "transpose",
}


@pytest.mark.parametrize(("banned", "instead"), VOCABULARY.items(), ids=VOCABULARY.values())
def test_one_word_for_one_thing(banned, instead):
    found = []
    for folder in ("coltran_jax", "launch", "configs", "docs", "examples", "README.md", "CONTRIBUTING.md"):
        paths = [ROOT / folder] if folder.endswith(".md") else sorted((ROOT / folder).rglob("*"))
        for path in paths:
            if path.suffix in (".py", ".md", ".html", ".ipynb", ".yaml", ".sh"):
                for number, line in enumerate(path.read_text().splitlines(), 1):
                    if re.search(rf"\b({banned})\b", line, re.IGNORECASE):
                        found.append(f"{path.relative_to(ROOT)}:{number}: write {instead}: {line.strip()}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", ["coltran_jax", "launch", "configs"])
def test_docstrings_open_with_a_sentence_or_a_noun(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                assert not FRAGMENTS.match(text), f"{path}: {text[:60]}"
