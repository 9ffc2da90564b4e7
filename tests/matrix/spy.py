"""What ``accelerate`` says of the installed version of a library, and what a spy on vqfast's search sees.

``python -m tests.matrix.spy LIBRARY`` prints it as JSON: a cell of the table for each quantiser.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
import warnings
from types import ModuleType

import torch
from torch import Tensor, nn

import vqfast
from tests.acceleration.compare import claims, step
from tests.acceleration.foreign import LIBRARIES, Foreign, sample
from vqfast.acceleration import search


def cell(foreign: Foreign) -> str:
    """The cell of one quantiser; a dash where this version hasn't got it.

    Raises:
        AssertionError: the report claims a search that isn't reached, or the results differ.
    """
    torch.manual_seed(0)
    try:
        module = foreign.build().eval()
    except (ImportError, AttributeError, TypeError):  # an option, or the class, isn't in this version
        return "-"
    x = sample(foreign)

    def call(each: nn.Module, z: Tensor = x) -> object:
        return getattr(each, foreign.method)(z)

    try:
        theirs = [step(copy.deepcopy(module).train(training), call, x) for training in (False, True)]
    except Exception as error:  # whatever this version makes of it
        return f"raises {type(error).__name__} by itself"
    for training, expected in zip((False, True), theirs, strict=True):
        report, empty = claims(module.train(training), call)
        assert not empty, f"{empty} are reported as accelerated, and reach no search"
        fast = copy.deepcopy(module)
        vqfast.accelerate(fast)
        torch.testing.assert_close(step(fast, call, x), expected, rtol=1e-4, atol=1e-5)
    if not report.left_alone:
        return "accelerated"
    reasons = "; ".join(dict.fromkeys(entry.note for entry in report.left_alone))
    counts = f"{len(report.accelerated)} accelerated, {len(report.left_alone)} " if report.accelerated else ""
    return f"{counts}left alone: {reasons}"


def seen(library: str) -> dict[str, str]:
    """The cells of a library by quantiser."""
    before, search.MIN_WORK = search.MIN_WORK, 0  # small calls are searched too
    try:
        return {name: cell(foreign) for name, foreign in LIBRARIES[library].items()}
    finally:
        search.MIN_WORK = before


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    importlib.import_module(sys.argv[1].replace("-", "_"))
    if sys.argv[1] == "transformers":
        sys.modules["torchaudio"] = ModuleType("torchaudio")  # which a file imports and no quantiser needs
    print(json.dumps(seen(sys.argv[1])))
