"""A user's file, which uses all of the public API, and the package itself before type checkers."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USER = ROOT / "tests" / "typing" / "user.py"
ROOMS = ("functional", "nn", "models", "priors", "sampling", "data", "pipeline")
PUBLIC = ("vqfast", *(f"vqfast.{room}" for room in ROOMS))


def check(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.first
def test_mypy():
    pytest.importorskip("mypy", reason="mypy is not installed")
    check([sys.executable, "-m", "mypy", "--strict", "vqfast", "benchmarks", str(USER)])


@pytest.mark.slow
@pytest.mark.first
def test_pyright():
    pytest.importorskip("pyright", reason="pyright is not installed")
    check([sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "vqfast", str(USER)])


def test_the_user_has_all_public_names():
    attributes = [
        node for node in ast.walk(ast.parse(USER.read_text("utf-8"))) if isinstance(node, ast.Attribute)
    ]
    used = {(node.value.id, node.attr) for node in attributes if isinstance(node.value, ast.Name)}
    public = {
        (name.rpartition(".")[2], each) for name in PUBLIC for each in importlib.import_module(name).__all__
    }
    own = {each for module, each in used if module == "vqfast"}  # one name may be public in two places
    assert {(module, each) for module, each in public - used if each not in own} == set()


@pytest.mark.parametrize("name", PUBLIC)
def test_all_public_names_are_there(name):
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, each) for each in module.__all__)
