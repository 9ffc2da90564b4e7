"""The reduced precision of products, ``precision="bfloat16"``, as it is defined."""

from __future__ import annotations

from torch import Tensor

from vqfast.checks import check_choice

BFLOAT16 = "bfloat16"


def rounded(factor: Tensor, precision: str | None) -> Tensor:
    """A factor of a product, in its own dtype: as it is, or with ``BFLOAT16`` the nearest bfloat16 numbers.

    Values and the matrices that they are multiplied by are factors. Sums, biases, values that are added,
    codes, which are looked up, and attentions are never rounded.

    >>> import torch
    >>> rounded(torch.tensor([1 + 2**-9, 1 + 3 * 2**-9]), BFLOAT16)
    tensor([1.0000, 1.0078])
    """
    return factor.bfloat16().to(factor.dtype) if precision == BFLOAT16 else factor


def check_precision(precision: str | None, executor: str) -> None:
    """Checks that an executor has a precision; all have ``None``.

    Raises:
        TypeError: it is neither a string nor None.
        ValueError: there is no such precision, or the executor is ``"triton"``.
    """
    if precision is None:
        return
    check_choice("precision", precision, (BFLOAT16,))
    if executor == "triton":
        raise ValueError(f"precision is {precision!r}; want None with triton, or a prior in bfloat16")
