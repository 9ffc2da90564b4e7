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
