"""Compares the function that is about to be called with the reference, in one stage or two."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqfast.ops.probe import assert_close, vectors_and_codebook


class Part(NamedTuple):
    """What of the op is called.

    Attributes:
        function: its name.
        several: whether there is more than one stage.
        sizes: of a small tensor like the one that is quantised, for which the same kernels are compiled;
            without the channels.
        channel_dim: the dimension of channels, not negative.
        dense: whether the channels of a vector lie side by side.
    """

    function: str
    several: bool
    sizes: tuple[int, ...]
    channel_dim: int
    dense: bool


PARTS = (  # of every function, in both layouts
    *(
        Part(function, several, (2, 1, 171), 1, dense)
        for function in ("quantize", "quantize_backward", "residual_codes")
        for several in (False, True)
        for dense in (False, True)
    ),
    Part("projected_codes", True, (2, 171), 1, False),
)


def part_of(function: str, several: bool, z: Tensor, channel_dim: int) -> Part:
    """The part that a call with ``z`` needs."""
    channel_dim %= z.ndim
    sizes = [size for dim, size in enumerate(z.shape) if dim != channel_dim]
    return Part(function, several, _like(sizes), channel_dim, z.stride(channel_dim) == 1)


def _like(sizes: list[int]) -> tuple[int, ...]:
    """Triton compiles 1 and multiples of 16 apart: of images, of vectors of an image, and of all vectors."""
    whole = math.prod(sizes) % 16 == 0
    if len(sizes) < 2:
        return tuple(1 if size == 1 else 352 if whole else 341 for size in sizes)
    images = 1 if sizes[0] == 1 else 2 if sizes[0] % 16 else 16
    multiple, multiple_in_all, other = {1: (352, 352, 341), 2: (176, 184, 171), 16: (32, 21, 21)}[images]
    inside = math.prod(sizes[1:])
    inside = 1 if inside == 1 else multiple if inside % 16 == 0 else multiple_in_all if whole else other
    return (images, *[1] * (len(sizes) - 2), inside)


def check(
    module: ModuleType,
    reference: ModuleType,
    device: torch.device,
    dtype: torch.dtype,
    channels: int,
    part: Part,
) -> None:
    """Raises AssertionError where ``module`` computes something else than ``reference``."""
    vectors, codebook = vectors_and_codebook(device, dtype, channels)
    numbers = torch.arange(math.prod(part.sizes), device=device) % len(vectors)
    z = vectors[numbers].view(*part.sizes, channels).movedim(-1, part.channel_dim)
    z = z if part.dense else z.contiguous()
    codebooks = torch.stack([codebook, (codebook - 3) / 4]) if part.several else codebook
    got, want = (_call(each, reference, part, z, codebooks) for each in (module, reference))
    tolerance = 2e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-3
    for found, wanted in zip(got, want, strict=True):
        assert_close(found, wanted, tolerance, tolerance)


def _call(
    module: ModuleType, reference: ModuleType, part: Part, z: Tensor, codebooks: Tensor
) -> tuple[Any, ...]:
    """What the function returns."""
    stages = list(codebooks) if part.several else [codebooks]
    if part.function == "residual_codes":
        return (module.residual_codes(z, stages, part.channel_dim),)
    if part.function == "projected_codes":
        same = torch.eye(codebooks.shape[-1]).to(z), z.new_zeros(codebooks.shape[-1])
        return tuple(module.projected_codes(z, stages, [*same, *same] * len(stages), False, True))
    if part.function == "quantize":
        return tuple(module.quantize(z, codebooks, part.channel_dim, True))
    out = reference.quantize(z, codebooks, part.channel_dim, False)
    one = torch.ones_like(out[2])
    return tuple(module.quantize_backward(z, one, one, z, codebooks, out[1], part.channel_dim))
