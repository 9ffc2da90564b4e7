"""Tests in another process, whose Triton kernels are interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from vqfast.ops import registry

ROOT = Path(__file__).parents[1]
# They take the longest and wait for nothing: conftest.py lets them begin first.
interpreted = [
    pytest.mark.slow,
    pytest.mark.first,
    pytest.mark.skipif(registry.interpreted(), reason="they run in this process"),
]


def quicken() -> None:
    """Leaves out what took three quarters of the interpreter's time, and changes nothing that it computes.

    For each call of a device function it looks through all of the language for what is to be patched, which
    the kernel's launch has done; and it makes its table of types anew for each value.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    def call(self, *arguments, **named):
        if tl.core.is_builtin(tl.core.load):
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*arguments, **named)

    def dtype_of(dtype):
        if type(dtype) is not tl.dtype:
            return by_table(dtype)
        if dtype.name not in known:
            known[dtype.name] = by_table(dtype)
        return known[dtype.name]

    by_table, known = interpreter._get_np_dtype, {}
    interpreter.InterpretedFunction.__call__ = call
    interpreter._get_np_dtype = dtype_of


def assert_passes(files: Sequence[Path | str], expression: str) -> None:
    """Runs the tests of the files that ``expression`` selects (``-k``)."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *files, "-k", expression, "--tb=short", "--maxfail=5"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
