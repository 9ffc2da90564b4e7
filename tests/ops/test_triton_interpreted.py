"""The op matrix over the Triton backend on a CPU, in a process whose kernels are interpreted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interpreter import assert_passes
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
    "few_vectors and not (1025 and 0-1-1)",
    "components and (259 or dtype1 or dtype2)",
    "magnitude and (dtype1 or dtype2)",
    "not_finite and (dtype1 or dtype2 or dtype3)",
    "lengths and (dtype1 or dtype2)",
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


CHOSEN = "triton and not (" + " or ".join(SLOW) + ")"


@pytest.mark.slow
@pytest.mark.skipif(registry.interpreted(), reason="they run in this process")
@pytest.mark.interpreted([HERE / name for name in FILES], CHOSEN)
def test_matrix_passes_in_the_interpreter(request: pytest.FixtureRequest) -> None:
    pytest.importorskip("triton")
    assert_passes(request)
