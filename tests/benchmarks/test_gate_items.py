"""Real items of the gate's suites and of its last step, in small: their names, arguments and calls."""

from __future__ import annotations

import ast
import dataclasses
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

import benchmarks
from benchmarks import core, gate_compile, gate_steps, machine, sweep
from vqfast import PixelCNN
from vqfast.ops import registry

LARGEST = {"residual_vq": 4, "sampling": 4}  # of a size of a real case; of other suites 8
LONG = ("degenerate", "masked_conv", "sampling")  # three quarters of the time of all

pytestmark = pytest.mark.slow


class Small(ast.NodeTransformer):
    """Makes sizes small: those of a module's own constants, and defaults of its functions."""

    def __init__(self, largest: int) -> None:
        self.largest = largest

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        large = type(node.value) is int and node.value > self.largest
        return ast.copy_location(ast.Constant(self.largest), node) if large else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "codec":  # whose channels are transformers'
            *_, length = node.args[2].elts
            node.args[2].elts[-1] = self.visit(length)
            return node
        return self.generic_visit(node)


def in_small(name: str) -> ModuleType:
    """A suite whose cases are the real ones but for their sizes; one of those that are the same then."""
    path = Path(import_module(f"benchmarks.{name}").__file__)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    small = Small(LARGEST.get(name, 8))
    for place, node in enumerate(tree.body):
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            tree.body[place] = small.visit(node)
        elif isinstance(node, ast.FunctionDef):
            node.args.defaults = [small.visit(default) for default in node.args.defaults]
    module = ModuleType(f"benchmarks.{name}")
    module.__file__ = str(path)
    exec(compile(tree, path, "exec"), vars(module))
    module.CASES = list({(case.name, *case.contenders): case for case in module.CASES}.values())
    return module


@pytest.mark.filterwarnings("ignore")  # peers have warnings of their own
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.every] * (name in LONG)) for name in gate_steps.SUITES]
)
def test_every_case_of_a_suite_runs_and_is_right(monkeypatch, name) -> None:
    monkeypatch.setattr(core, "peak", lambda: machine.Peak(1e9, 1e8, "made up"))
    monkeypatch.setattr(core, "compiled", lambda function, **options: function)
    monkeypatch.setattr(core, "MEASURABLE", 1e-9)
    for shared in ("nearest", "layer", "sampling"):  # suites of which others take cases and shapes
        monkeypatch.setitem(sys.modules, f"benchmarks.{shared}", in_small(shared))
        monkeypatch.setattr(benchmarks, shared, sys.modules[f"benchmarks.{shared}"], raising=False)
    monkeypatch.setattr(gate_steps, "SUITES", (name,))
    monkeypatch.setattr(gate_steps, "import_module", lambda path: in_small(path.rpartition(".")[2]))
    items = list(gate_steps.suites())
    assert items
    for item in items:
        found = item.run(100.0)
        assert "wrong" not in found, (item.name, found)
        assert "vqfast" in found.get("seconds", {}) or "full form" in found["absent"], (item.name, found)


def test_the_rest_is_all_other_files_of_tests_and_each_is_found_by_pytest(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(gate_steps, "run_tests", lambda path, *rest: asked.append(path) or {"passed": True})
    items = list(gate_steps.rest())
    assert all(item.run(100.0) == {"passed": True, "failures": ""} for item in items)
    assert all(path.is_file() for path in asked)
    decided = {path for op in gate_steps.registry.TABLE for path in gate_steps.files_of(op)}
    left_out = {path for path in gate_steps.TESTS.rglob("test_*.py") if path not in decided} - set(asked)
    assert {path.name for path in left_out} == {"test_style.py", "test_wheel.py"}
    assert len({item.name for item in items}) == len(asked)


LINES = ["search 64", "convolve half", "weight tf32", "sampler torch.bfloat16, batch 16"]


@pytest.mark.skipif(registry.interpreted(), reason="an interpreted kernel isn't compiled")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("name", LINES)
def test_a_line_of_the_sweep_compiles_ahead_the_kernels_of_each_tuning_that_it_times(
    monkeypatch, name
) -> None:
    pytest.importorskip("triton")
    from tests.ops.uncompiled import asked_for_h100
    from vqfast.ops.masked_conv import triton as conv
    from vqfast.ops.nearest import triton as nearest

    monkeypatch.setattr(machine, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(torch, "randn", torch.zeros)
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    monkeypatch.setattr(sweep, "PixelCNN", lambda *sizes: PixelCNN(5, 16, 1))
    for op in ("nearest", "masked_conv", "sampler"):
        anywhere = dataclasses.replace(registry.TABLE[op]["triton"], devices=None)
        monkeypatch.setitem(registry.TABLE, op, {"triton": anywhere})
    for plans in (nearest, conv):
        monkeypatch.setattr(plans, "_plans", {})
    lines = sweep.lines()
    monkeypatch.setattr(sweep, "lines", lambda: lines)
    line = lines[name]
    tuning = line.tunings[line.key]
    tunings = list(sweep.neighbours(tuning))
    ahead: list[set[str]] = []

    def compile_ahead(name: str, count: int, seconds: float) -> None:
        for number in range(count):
            before = set().union(*asked.values())
            gate_compile.main(name, number)
            ahead.append(set().union(*asked.values()) - before)

    with asked_for_h100(monkeypatch) as asked:
        monkeypatch.setattr(gate_compile, "ahead", compile_ahead)
        (item,) = (item for item in gate_steps.sweep() if item.name == name)
        timed = item.run(100.0)["tunings"]
    assert len(ahead) == len(timed) == len(tunings)
    assert not any("failed" in each for each in timed)
    assert set().union(*ahead) == set().union(*asked.values())  # nothing is left to compile
    assert all(ahead[:1]) and sum(map(bool, ahead)) > len(tunings) / 2  # some sizes are cut to the shape's
    assert line.tunings[line.key] == tuning
