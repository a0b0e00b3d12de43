"""Modules import each other at the top, one way: a circle would have to hide in a function."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "awp_jax"
# Its commands and JAX come when they are called, so that help comes at once.
LAZY = {"cli/__init__.py"}


def hidden(path):
    tree = ast.parse(path.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in (inner for function in functions for inner in ast.walk(function)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("awp_jax"):
            yield node.module
        if isinstance(node, ast.Import):
            yield from (n.name for n in node.names if n.name.startswith("awp_jax"))


@pytest.mark.core
def test_no_import_of_ours_hides_in_a_function():
    files = {str(path.relative_to(ROOT)): path for path in ROOT.rglob("*.py")}
    assert {name for name, path in files.items() if list(hidden(path))} == LAZY
