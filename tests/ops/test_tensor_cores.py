"""The search's bound against models of how tensor cores add: operands are aligned, and cut off.

Sources of the models: Fasi, Higham, Mikaitis and Pranesh 2021, "Numerical behavior of NVIDIA tensor cores";
Khattak and Mikaitis, arXiv 2512.07004; MMA-Sim, arXiv 2511.10909. A model takes the sum so far and a block of
exact products, aligns all to the largest, cuts each off behind so many bits, adds, and cuts the sum off to
float32. What is published of the MI300 (four products at a time, 24 bits) differs from the others only in
these two numbers.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

MODELS = {"A100": (8, 24), "H100": (16, 25), "B200": (32, 25), "MI300": (4, 24)}  # products at a time, bits
CARELESS = (16, 15)  # the control


def cut(x: Tensor, bits: Tensor | int, exponent: Tensor) -> Tensor:
    """``x`` cut off ``bits`` behind the place of ``exponent``."""
    unit = torch.ldexp(torch.ones_like(x), exponent - bits)
    return (x / unit).trunc() * unit


def product(x: Tensor, codes: Tensor, start: Tensor, model: tuple[int, int]) -> Tensor:
    """``start (K,) + codes @ x``, for fp16 ``x (D,)`` and ``codes (K, D)``, as the model computes it."""
    size, bits = model
    total = start.double()
    for at in range(0, len(x), size):
        terms = torch.cat([total[:, None], codes[:, at : at + size].double() * x[at : at + size].double()], 1)
        exponent = terms.abs().amax(1, keepdim=True).clamp(min=2.0**-120).frexp().exponent
        total = cut(terms, bits, exponent).sum(1)
        total = cut(total, 24, total.abs().clamp(min=2.0**-120).frexp().exponent)
    return total


def data(name: str, channels: int) -> tuple[Tensor, Tensor]:
    """A vector and 200 code vectors in fp16, scaled as the kernel scales them."""
    x, codes = torch.randn(channels), torch.randn(200, channels)
    if name == "aligned":  # all products positive: sums grow, and every cut is in the same direction
        x, codes = x.abs(), codes.abs()
    elif name == "growing":
        scale = torch.logspace(-12, 0, channels, base=2)
        x, codes = x.abs() * scale, codes.abs()
    elif name == "cancelling":  # the first half and the second add up to almost nothing
        half = channels // 2
        codes[:, half:] = -codes[:, :half] * (1 + 1e-3 * torch.randn(200, half))
        x[half:] = x[:half]
    return ((each / each.abs().max()).half() for each in (x, codes))


def worst(model: tuple[int, int], channels: int, name: str) -> float:
    """The largest error of a score, over what the bound's point 3 and 4 allow."""
    x, codes = data(name, channels)
    size, width = x.double().norm(), codes.double().norm(dim=1)
    half = (codes.double().square().sum(1) / 2).float()
    computed = product(-x, codes, half, model)
    exact = half.double() - codes.double() @ x.double()
    bound = size * width.max() + width.max().square() / 2
    allowed = (2 * channels + 1 + 16) * 2.0**-23 * bound
    return float((computed - exact).abs().max() / allowed)


@pytest.mark.parametrize("name", ["gaussian", "aligned", "growing", "cancelling"])
@pytest.mark.parametrize("channels", [16, 64, 256])
@pytest.mark.parametrize("gpu", MODELS)
def test_a_score_errs_less_than_the_bound_says(gpu, channels, name) -> None:
    assert worst(MODELS[gpu], channels, name) < 0.5


def test_a_careless_sum_exceeds_the_bound() -> None:
    assert max(worst(CARELESS, 64, name) for name in ("gaussian", "aligned")) > 1


def test_the_model_of_an_exact_sum_is_exact() -> None:
    x, codes = torch.randint(-8, 8, (64,)).half(), torch.randint(-8, 8, (20, 64)).half()
    start = torch.arange(20.0)
    assert torch.equal(product(x, codes, start, (16, 25)), start.double() + codes.double() @ x.double())
