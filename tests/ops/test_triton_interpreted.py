"""The op matrix over the Triton backend on a CPU, in processes whose kernels are interpreted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interpreter import assert_passes, interpreted

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
    "one_tap and not 3-horizontal-A-strided",
    "odd_sizes and shape0 and dtype2",
    "one_hot and (dtype1 or dtype2 or shape0 and dtype3)",
    "any_strides and (dtype1 or dtype2)",
    "codes_are and (dtype1 or dtype2 or dtype3 and not rows)",
    "gradients_are and (types1 or types2 or types3 or types4 or types5 or dtype1 and front)",
    "any_layout and dtype2 and not audio",
    "gate_equals and (strided or expanded)",
    "activation_extra and (gate-none or relu-sample)",
    "every_vector_is_in_one_block or scores_are_not_kept or component-dtype0",
    "duplicate and 128",
    "odd_sizes and vertical and dtype0",
    "opcheck_backward and not contiguous",
    "codes_are and (audio or every or transposed or expanded)",
    "vmap",
]
FILES = {
    "nearest": ["test_nearest.py", "test_triton_kernels.py"],
    "residual": ["test_residual.py", "test_residual_one_stage.py", "test_residual_codes.py"],
    "masked_conv": ["test_masked_conv.py", "test_masked_conv_embed.py", "test_masked_conv_fused.py"],
}
pytestmark = interpreted


@pytest.mark.parametrize("op", FILES)
def test_matrix_passes_in_the_interpreter(op) -> None:
    assert_passes([HERE / name for name in FILES[op]], f"triton and not ({' or '.join(SLOW)})")
