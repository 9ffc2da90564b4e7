"""Mu-law: waveforms in few values, fine where it is quiet."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqfast.checks import check_floating, check_indices, check_integer


def mu_law_encode(waves: Tensor, num_values: int = 256) -> Tensor:
    """Samples as integers, by the mu-law of ITU-T G.711 with mu = ``num_values - 1``.

    Source: van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio" (arXiv 1609.03499), section
    2.2: ``sign(x) * log(1 + mu * |x|) / log(1 + mu)``, rounded to ``num_values`` values.

    Args:
        waves: floating point of any shape, in [-1, 1]; values outside are clamped.
        num_values: how many values there are, 2 or more.

    Returns:
        int64 of the same shape, in ``0..num_values - 1``. Silence is ``num_values // 2``.

    Raises:
        TypeError: ``waves`` isn't floating point, or ``num_values`` no integer.
        ValueError: ``num_values`` is below 2.

    Example:
        >>> vqfast.models.mu_law_encode(torch.tensor([-1.0, -0.01, 0.0, 0.01, 1.0]))
        tensor([  0,  98, 128, 157, 255])
    """
    check_integer("num_values", num_values, 2)
    check_floating(waves=waves)
    squeezed = mu_law_squeeze(waves.to(torch.promote_types(waves.dtype, torch.float32)), num_values)
    return ((squeezed + 1) / 2 * (num_values - 1) + 0.5).floor().long()


def mu_law_decode(indices: Tensor, num_values: int = 256, *, dtype: torch.dtype | None = None) -> Tensor:
    """The samples that ``mu_law_encode`` made integers of, to within half a step.

    Args:
        indices: integers of any shape, in ``0..num_values - 1``.
        num_values: as in ``mu_law_encode``.
        dtype: of the result; ``None`` for torch's default.

    Returns:
        Floating point of the same shape, in [-1, 1].

    Raises:
        TypeError: ``indices`` aren't integers, or ``num_values`` is none.
        ValueError: one is out of range.

    Example:
        >>> x = torch.linspace(-1, 1, 5)
        >>> vqfast.models.mu_law_decode(vqfast.models.mu_law_encode(x))
        tensor([-1.0000e+00, -4.9668e-01,  8.6213e-05,  4.9668e-01,  1.0000e+00])
    """
    check_integer("num_values", num_values, 2)
    check_indices("indices", indices, num_values)
    return mu_law_expand(
        2 * indices.to(dtype or torch.get_default_dtype()) / (num_values - 1) - 1, num_values
    )


def mu_law_squeeze(waves: Tensor, num_values: int) -> Tensor:
    """Samples in mu-law, in [-1, 1], before they are rounded."""
    x, mu = waves.clamp(-1, 1), num_values - 1
    return x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu)


def mu_law_expand(squeezed: Tensor, num_values: int) -> Tensor:
    """Samples whose values in mu-law, in [-1, 1], are these."""
    mu = num_values - 1
    return squeezed.sign() * torch.expm1(squeezed.abs() * math.log1p(mu)) / mu
