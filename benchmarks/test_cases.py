"""All cases under pytest-benchmark: ``python -m pytest benchmarks``, with its ``--benchmark-compare``.

``-k`` chooses suites. Unlike in records, the rounds of one contender follow one another.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

from benchmarks.__main__ import SUITES
from benchmarks.core import AbsentError, Case, seconds

pytest.importorskip("pytest_benchmark")
pytestmark = pytest.mark.filterwarnings("default")
MODULES = {name: import_module(f"benchmarks.{name}") for name in SUITES}


@pytest.mark.parametrize(
    "case, contender",
    [
        pytest.param(case, contender, id=f"{name}: {case.name}: {contender}")
        for name, module in MODULES.items()
        for case in module.CASES
        for contender in case.contenders
    ],
)
def test_case(case: Case, contender: str, benchmark: Any) -> None:
    """Times one contender on new data in each round, once its output is checked."""
    torch.manual_seed(0)
    try:
        call = case.contenders[contender]()
    except (AbsentError, ImportError) as error:
        pytest.skip(str(error))
    benchmark.group = case.name
    benchmark.extra_info["shape"] = dict(case.shape)
    benchmark.extra_info["part"] = case.parts.get(contender, 1)
    data = case.data()
    case.check(data, {contender: seconds(call, data)[1]})
    benchmark.pedantic(lambda data: seconds(call, data), setup=lambda: ((case.data(),), {}), rounds=5)
