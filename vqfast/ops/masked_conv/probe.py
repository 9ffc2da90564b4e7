"""Compares the function that is about to be called with the reference, on a small grid."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqfast.ops.masked_conv.layout import memory_format
from vqfast.ops.probe import assert_close, width_of


class Part(NamedTuple):
    """What of the op is called.

    Attributes:
        function: its name.
        sizes: images, rows and columns of a small input for which the same kernels are compiled.
        out: channels of the sums; even, as a gate needs.
        geometry: rows and columns of the kernel, ``taps``, ``anchor`` and ``dilation``.
        given: of bias, extra and residual, ``""`` for one that is ``None``, ``"sample"`` for an extra that is
            the same at every position, else ``"grid"``.
        activation: as in ``masked_conv2d``.
        layout: the memory format of the input.
        weights: the memory format of the weight.
        precision: with which PyTorch's float32 convolutions are set to compute, and these too.
    """

    function: str
    sizes: tuple[int, int, int] = (2, 16, 16)
    given: tuple[str, ...] = ()
    out: int = 32
    geometry: tuple[int, ...] = (3, 3, 5, 1, 1, 1, 1)
    activation: str = "none"
    layout: torch.memory_format = torch.contiguous_format
    weights: torch.memory_format = torch.contiguous_format
    precision: str = ""


PARTS = tuple(  # of every function that has a kernel, in both layouts
    part._replace(layout=layout, weights=layout)
    for layout in (torch.contiguous_format, torch.channels_last)
    for part in (
        Part("masked_conv2d", given=("grid", "", "")),
        Part("masked_conv2d", (1, 9, 9), ("", "", "grid"), geometry=(2, 3, 6, 2, 1, 1, 1), activation="relu"),
        Part("masked_conv2d", given=("grid", "sample", "grid"), activation="gate"),
        Part("masked_conv2d_backward"),
        Part("gate", given=("sample",)),
        Part("gate_backward", given=("grid",)),
    )
)


def part_of(
    function: str,
    x: Tensor,
    given: tuple[Tensor | None, ...],
    weight: Tensor | None = None,
    placed: tuple[int, ...] = (),
    activation: str = "none",
) -> Part:
    """The part that a call with ``x`` needs.

    ``given`` are bias, extra and residual, or what it has of them; ``placed`` are ``taps``, ``anchor`` and
    ``dilation``.
    """
    # Triton compiles sizes of 1 and multiples of 16 apart, and so it does the number of all positions
    batch, _, *grid = x.shape
    height, width = (1 if size == 1 else 9 if size % 16 else 16 for size in grid)
    images = 16 if batch * grid[0] * grid[1] % 16 == 0 else 1
    part = Part(function, (images, height, width), tuple(map(_kind, given)), layout=memory_format(x))
    if weight is None:
        return part
    out, _, *kernel = weight.shape
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch makes it as it starts
    return part._replace(
        out=width_of(out, 2),
        geometry=(*kernel, *placed),
        activation=activation,
        weights=memory_format(weight),
        precision=convolutions.fp32_precision if x.dtype == torch.float32 else "",
    )


def _kind(tensor: Tensor | None) -> str:
    if tensor is None:
        return ""
    return "sample" if tensor.ndim == 4 and tensor.shape[2] == tensor.shape[3] == 1 else "grid"


def check(
    module: ModuleType,
    reference: ModuleType,
    device: torch.device,
    dtype: torch.dtype,
    channels: int,
    part: Part,
) -> None:
    """Raises AssertionError where ``module`` differs from ``reference`` in float64."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator).to(device, dtype)
        return drawn.contiguous(memory_format=part.layout) if len(shape) == 4 else drawn

    height, width, taps, *placed = part.geometry
    weight = (draw(part.out, channels, height, width) / (taps * channels) ** 0.5).contiguous(
        memory_format=part.weights
    )
    given = _arguments(part, draw, channels, weight, (taps, placed[:2], placed[2:]))
    doubles = (t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in given)
    got, want = getattr(module, part.function)(*given), getattr(reference, part.function)(*doubles)
    for a, b in zip(*((t,) if isinstance(t, Tensor) else t for t in (got, want)), strict=True):
        size = b.abs().max().item() if b.numel() else 0
        assert_close(a.double(), b, 0.0, 1e-2 * size)  # TF32, bfloat16


def _arguments(
    part: Part,
    draw: Callable[..., Tensor],
    channels: int,
    weight: Tensor,
    geometry: tuple[Any, ...],
) -> tuple[Any, ...]:
    """What the function is called with."""
    wide, (images, *grid) = part.out, part.sizes
    if part.function.startswith("gate"):
        wide = 2 * channels
        x, extra = draw(images, wide, *grid), part.given[0]
        added = None if not extra else draw(images, wide, *((1, 1) if extra == "sample" else grid))
        return (x, added) if part.function == "gate" else (draw(images, channels, *grid), x, added)
    x = draw(images, channels, *grid)
    if part.function.startswith("embed"):
        indices = x[:, 0].abs().long() % channels
        if part.function == "embed":
            return indices, weight, draw(wide), *geometry
        return draw(images, wide, *grid), indices, weight, *geometry
    if part.function == "masked_conv2d_backward":
        return draw(images, wide, *grid), x, weight, *geometry
    bias, extra, residual = part.given
    return (
        x,
        weight,
        draw(wide) if bias else None,
        draw(images, wide, *((1, 1) if extra == "sample" else grid)) if extra else None,
        draw(images, wide // 2 if part.activation == "gate" else wide, *grid) if residual else None,
        *geometry,
        part.activation,
    )
