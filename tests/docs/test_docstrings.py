"""Runs the ``>>>`` examples of every module."""

import doctest
import pkgutil
from importlib import import_module

import pytest
import torch

import vqfast

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# importing vqfast.cli.__main__ runs the command
MODULES = ["vqfast", *(found.name for found in pkgutil.walk_packages(vqfast.__path__, "vqfast."))]
MODULES.remove("vqfast.cli.__main__")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, monkeypatch, tmp_path, capsys):
    """Each docstring runs by itself, in an empty folder, after ``torch.manual_seed(0)``."""
    if "triton" in name:
        pytest.importorskip("triton", reason="Triton has no build for this platform")
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for example in doctest.DocTestFinder(exclude_empty=True).find(import_module(name)):
        torch.manual_seed(0)
        example.globs.update(torch=torch, vqfast=vqfast)
        runner.run(example)
    assert not runner.failures, capsys.readouterr().out
