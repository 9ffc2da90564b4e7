"""Tests in another process, whose Triton kernels are interpreted.

They take minutes on one core, so they begin before the first test of this process and run beside it. A test
with the mark ``interpreted`` waits for them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vqfast.ops import registry

ROOT = Path(__file__).parents[1]
PROCESSES = pytest.StashKey[dict[str, "subprocess.Popen[str]"]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begins the chosen tests' processes; the mark's arguments are files and an expression for ``-k``."""
    session.stash[PROCESSES] = {}
    if registry.interpreted() or session.config.option.collectonly:
        return
    for item in session.items:
        if mark := item.get_closest_marker("interpreted"):
            files, expression = mark.args
            session.stash[PROCESSES][item.nodeid] = subprocess.Popen(
                [sys.executable, "-m", "pytest", *files, "-k", expression, "--tb=short", "--maxfail=5"],
                cwd=ROOT,
                env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Ends the processes that no test waited for."""
    for process in session.stash.get(PROCESSES, {}).values():
        process.kill()
        process.communicate()


def assert_passes(request: pytest.FixtureRequest) -> None:
    """Waits for the process of the test that asks."""
    process = request.session.stash[PROCESSES].pop(request.node.nodeid)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert " passed" in output
