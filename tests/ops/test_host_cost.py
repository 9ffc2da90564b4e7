"""What Python does for a call of a GPU's kernel, counted: each function entered takes a part of 40 us."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import host_cost
from vqfast.ops import registry

pytestmark = pytest.mark.skipif(registry.interpreted(), reason="an interpreted kernel isn't kept")


def entered(call: Callable[[], object]) -> int:
    """Functions of Python and of C that a call enters."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "name, most",
    [
        ("nearest_code", 100),
        ("its gradients", 110),
        ("its statistics alone", 30),
        ("sums in order", 60),
        ("masked_conv2d", 160),
        ("a convolution's gradients", 100),
        ("gate", 100),
        ("sampler's launch", 30),
    ],
)
def test_a_call_enters_few_functions(name, most) -> None:
    with torch.no_grad(), host_cost.stubbed() as calls:
        assert most / 2 < entered(calls[name]) <= most
