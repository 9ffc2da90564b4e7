"""The op matrix over the Triton backend on a CPU, in a process whose kernels are interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vqfast.ops import registry

HERE = Path(__file__).parent
# Left to `TRITON_INTERPRET=1 pytest tests/ops`: slow there, and the kernels are those of other tests.
SLOW = [
    "gradcheck",
    "compiles",
    "opcheck and not transposed",
    "duplicate and (dtype1 or dtype2 or dtype3)",
    "8192 and not 1000",
    "gradients and (wanted1 or wanted2 or dtype0)",
    "layout and (dtype1 or dtype3)",
    "threads",
    "odd_sizes and (full or dtype1 or dtype3)",
    "activation_extra and not (contiguous and dtype2 or channels_last and dtype0)",
    "gate_equals and (dtype1 or dtype3)",
    "sizes_beside and (contiguous or channels2)",
]
FILES = [
    "test_nearest.py",
    "test_residual.py",
    "test_residual_one_stage.py",
    "test_residual_codes.py",
    "test_masked_conv.py",
    "test_masked_conv_embed.py",
    "test_masked_conv_fused.py",
    "test_triton_kernels.py",
]


@pytest.mark.slow
@pytest.mark.skipif(registry.interpreted(), reason="they run in this process")
def test_matrix_passes_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    chosen = "triton and not (" + " or ".join(SLOW) + ")"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *(HERE / name for name in FILES),
            "-k",
            chosen,
            "--tb=short",
            "--maxfail=5",
        ],
        cwd=HERE.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
