"""Quantisers and masked convolutions in plain PyTorch, as everyone writes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast import functional

SAMPLES = 3


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def codes(*shape: int) -> Tensor:
    return torch.randint(5, shape)


def straight(z: Tensor, book: Tensor, dim: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """A quantiser as everyone writes it."""
    flat = z.movedim(dim, -1)
    distances = (flat.detach().unsqueeze(-2) - book.detach()).square().sum(-1)
    picked = book[distances.argmin(-1)].movedim(-1, dim)
    losses = (z.detach() - picked).square().mean(), (z - picked.detach()).square().mean()
    return z + (picked - z).detach(), *losses


def straight_stages(z: Tensor, books: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rest, losses = z, []
    for book in books:
        quantized, *both = straight(rest, book)
        losses.append(both)
        rest = rest - quantized.detach()
    codebook, commitment = (torch.stack(each) for each in zip(*losses, strict=True))
    return z + ((z - rest) - z).detach(), codebook, commitment


def convolved(x: Tensor, weight: Tensor, bias: Tensor, extra: Tensor, mask_type: str) -> Tensor:
    """The convolution, by a weight that is multiplied by its mask."""
    mask = torch.zeros(9, dtype=x.dtype)
    mask[: 5 if mask_type == "B" else 4] = 1
    return F.conv2d(x, weight * mask.view(3, 3), bias, padding=1) + extra


def gated(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()


def distance(x: Tensor, book: Tensor) -> Tensor:
    return (x.unsqueeze(-2) - book).square().sum(-1).sqrt().amin(-1)


def plain_quantize(z_e: Tensor, codebook: Tensor, *, channel_dim: int = 1, return_statistics: bool = False):
    quantized, *losses = straight(z_e, codebook, channel_dim)
    rows = z_e.movedim(channel_dim, -1).unsqueeze(-2)
    indices = (rows - codebook).square().sum(-1).argmin(-1)
    return functional.Quantized(quantized, indices, *losses, indices, indices)


def plain_residual_quantize(
    z_e: Tensor, codebooks: Tensor, *, channel_dim: int = 1, return_statistics: bool = False
):
    quantized, *losses = straight_stages(z_e.movedim(channel_dim, 1), codebooks)
    nothing = torch.zeros(len(codebooks), 0, dtype=torch.int64)
    return functional.Quantized(quantized.movedim(1, channel_dim), nothing, *losses, nothing, nothing)


def plain_conv(x, weight, bias, mask_type, stack, dilation, activation, extra, residual) -> Tensor:
    """By a whole kernel, of which ``weight`` fills what it sees."""
    taps, (ay, ax) = functional.visible_taps(weight.shape[2:], mask_type, stack)
    kh, kw = weight.shape[2:]
    mask = (torch.arange(kh * kw) < taps).to(x.dtype).view(kh, kw)
    pad = [ax * dilation, max(0, kw - 1 - ax) * dilation, ay * dilation, max(0, kh - 1 - ay) * dilation]
    x = F.pad(x, pad)[..., : x.shape[2] + (kh - 1) * dilation, : x.shape[3] + (kw - 1) * dilation]
    out = F.conv2d(x, weight * mask, bias, dilation=dilation) + (0 if extra is None else extra)
    out = {"none": lambda x: x, "relu": F.relu, "gate": gated}[activation](out)
    return out if residual is None else out + residual


def plain_embed(codes, weight, bias, taps, anchor, dilation) -> Tensor:
    picked = F.one_hot(codes, weight.shape[1]).movedim(-1, 1).to(weight.dtype)
    return plain_conv(picked, weight, bias, "A", "full", dilation[0], "none", None, None)


def outputs(values: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (values,) if isinstance(values, Tensor) else tuple(values)


def total(function: Callable) -> Callable:
    """A scalar of it whose every derivative says something."""
    return lambda *given: sum((value + value.square() / 2).sum() for value in outputs(function(*given)))


def numbers(arguments: list) -> tuple[int, ...]:
    return tuple(range(len(arguments)))
