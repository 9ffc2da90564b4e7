"""Runs the ``>>>`` examples of every module."""

import doctest
import inspect
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

import vqfast

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# importing vqfast.__main__ runs the command
MODULES = ["vqfast", *(found.name for found in pkgutil.walk_packages(vqfast.__path__, "vqfast."))]
MODULES.remove("vqfast.__main__")


@pytest.mark.parametrize("name", MODULES)
def test_examples(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each docstring runs by itself, in an empty folder, after ``torch.manual_seed(0)``."""
    if "triton" in name:
        pytest.importorskip("triton", reason="Triton has no build for this platform")
    if "audio" in name:
        pytest.importorskip("soundfile", reason="soundfile is not installed")
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for example in doctest.DocTestFinder(exclude_empty=True).find(import_module(name)):
        torch.manual_seed(0)
        example.globs.update(torch=torch, vqfast=vqfast)
        runner.run(example)
    assert not runner.failures, capsys.readouterr().out


ROOMS = ("vqfast", "vqfast.functional", "vqfast.nn", "vqfast.models", "vqfast.priors", "vqfast.sampling")


def public() -> dict[str, object]:
    """The exported functions and classes, and an object with methods, by name."""
    found = {
        name: getattr(import_module(room), name) for room in ROOMS for name in import_module(room).__all__
    }
    return {name: value for name, value in found.items() if callable(value)}


@pytest.mark.parametrize("name, value", public().items())
def test_public_names_explain_themselves(name: str, value: object) -> None:
    """A docstring, one for each public method, and an example in one of them."""
    documented = value if inspect.isclass(value) or inspect.isfunction(value) else type(value)
    methods = dict(inspect.getmembers(documented, inspect.isfunction))
    ours = {key: method for key, method in methods.items() if method.__module__.startswith("vqfast")}
    assert documented.__doc__
    assert not [key for key, method in ours.items() if not key.startswith("_") and not method.__doc__]
    own = [
        documented.__doc__,
        *(method.__doc__ or "" for key, method in ours.items() if key in vars(documented)),
    ]
    assert any(">>>" in text for text in own), f"{name} has no example"
