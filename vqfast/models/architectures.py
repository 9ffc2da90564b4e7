"""Encoders and decoders of well-known VQ-VAEs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vqfast.checks import Device, check_integer
from vqfast.models.batch_norm import BatchNorm2d
from vqfast.nn.residual_block import ResidualBlock, convolutions


class Architecture(NamedTuple):
    """How the modules of a model are built.

    Attributes:
        build: makes the modules.
        ndims: the numbers of spatial axes that it can have.
        defaults: the options that it has, and their defaults.
        channels_last: whether its images are computed faster with the channels last in memory.
        codebook_bound: the code vectors start uniformly in plus and minus this, unless they start from data;
            ``None`` for the layer's own random start.
    """

    build: Callable[..., Any]
    ndims: tuple[int, ...]
    defaults: dict[str, int]
    channels_last: bool = True
    codebook_bound: float | None = None

    def place(self, model: nn.Module, ndim: int, device: Device, dtype: torch.dtype | None) -> None:
        """Moves a new model of ``ndim`` axes, and says in which memory format its encoder gets images.

        Convolutions take over the format of their input. The weights stay contiguous, as FSDP2 wants them.
        """
        model.to(device, dtype)
        if self.channels_last and ndim == 2:
            encoder: Any = model.encoder
            encoder.register_forward_pre_hook(_channels_last)


def _channels_last(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    # contiguous() would leave images of one channel as they are; vmap knows no clone in torch.channels_last
    last = inputs[0].permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    return (last.permute(0, 3, 1, 2),)


def _paper(
    ndim: int,
    in_channels: int,
    out_channels: int,
    embedding_dim: int,
    *,
    hidden_channels: int,
    num_downsamplings: int,
    num_residual_blocks: int,
) -> tuple[nn.Sequential, nn.Sequential]:
    conv, transposed = convolutions(ndim)
    widths = [hidden_channels] * num_downsamplings
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    # in turn, as in 0.1.0: a seed draws the same weights
    for (before, after), (narrow, wide) in zip(
        pairwise([in_channels, *widths]), pairwise([out_channels, *widths]), strict=True
    ):
        down += [conv(before, after, 4, 2, 1), nn.ReLU()]
        up = [nn.ReLU(), transposed(wide, narrow, 4, 2, 1), *up]
    # no ReLU after the last strided convolution: a residual block begins with one
    down, blocks = down[:-1], range(num_residual_blocks)
    return (
        nn.Sequential(
            *down,
            *(ResidualBlock(conv, hidden_channels, hidden_channels) for _ in blocks),
            nn.ReLU(),
            conv(hidden_channels, embedding_dim, 1),
        ),
        nn.Sequential(
            conv(embedding_dim, hidden_channels, 3, padding=1),
            *(ResidualBlock(conv, hidden_channels, hidden_channels) for _ in blocks),
            *up,
        ),
    )


def doubling(hidden_channels: int, count: int) -> list[int]:
    """``count`` widths, each twice the one before, up to ``hidden_channels``."""
    first = hidden_channels >> (count - 1)
    if first << (count - 1) != hidden_channels:
        wanted = f"a multiple of 2 ** {count - 1} = {1 << (count - 1)}"
        raise ValueError(f"hidden_channels is {hidden_channels}; want {wanted}")
    return [first << i for i in range(count)]


def _keras(
    ndim: int,
    in_channels: int,
    out_channels: int,
    embedding_dim: int,
    *,
    hidden_channels: int,
    num_downsamplings: int,
) -> tuple[nn.Sequential, nn.Sequential]:
    widths = doubling(hidden_channels, num_downsamplings)
    # Keras' padding "same" with stride 2 pads, and crops, at the far end only
    pad, crop = nn.ZeroPad2d((0, 1, 0, 1)), nn.ZeroPad2d((0, -1, 0, -1))
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for before, after in pairwise([in_channels, *widths]):
        down += [pad, nn.Conv2d(before, after, 3, 2), nn.ReLU()]
    for before, after in pairwise([embedding_dim, *widths[::-1]]):
        up += [nn.ConvTranspose2d(before, after, 3, 2), crop, nn.ReLU()]
    last = nn.ConvTranspose2d(widths[0], out_channels, 3, padding=1)
    return nn.Sequential(*down, nn.Conv2d(widths[-1], embedding_dim, 1)), nn.Sequential(*up, last)


def batch_norm_block(in_channels: int, out_channels: int, *, relu: bool = True) -> nn.Sequential:
    """A 3x3 convolution, which starts Kaiming normal, batch normalisation, and perhaps a ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return nn.Sequential(conv, BatchNorm2d(out_channels), *([nn.ReLU()] if relu else []))


def _ruseckas(
    ndim: int,
    in_channels: int,
    out_channels: int,
    embedding_dim: int,
    *,
    hidden_channels: int,
    num_downsamplings: int,
) -> tuple[nn.Sequential, nn.Sequential]:
    widths = doubling(hidden_channels, num_downsamplings + 1)
    block = batch_norm_block
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        down += [nn.MaxPool2d(2), block(narrow, wide)]
        up = [nn.Upsample(scale_factor=2), block(wide, narrow), *up]
    last = nn.Conv2d(widths[0], out_channels, 3, padding=1)
    return (
        nn.Sequential(block(in_channels, widths[0]), *down, block(widths[-1], embedding_dim)),
        nn.Sequential(block(embedding_dim, widths[-1]), *up, last, nn.Sigmoid()),
    )


ARCHITECTURES = {
    "paper": Architecture(
        _paper,
        (1, 2, 3),
        {"hidden_channels": 256, "num_downsamplings": 2, "num_residual_blocks": 2, "num_mixtures": 0},
    ),
    "keras": Architecture(
        _keras,
        (2,),
        {"hidden_channels": 64, "num_downsamplings": 2, "num_mixtures": 0},
        codebook_bound=0.05,  # tf.random_uniform_initializer's
    ),
    "ruseckas": Architecture(_ruseckas, (2,), {"hidden_channels": 512, "num_downsamplings": 5}),
}
# minimum, and maximum where there is one; the stride of a model is a power of two
RANGES = {
    "hidden_channels": (1,),
    "num_downsamplings": (1, 62),
    "num_residual_blocks": (0,),
    "num_mixtures": (0,),
    "num_levels": (2, 31),
    "residual_channels": (1,),
    "embedding_dim": (1,),
    "image_size": (1,),
}


def check_ndim(ndim: int, ndims: tuple[int, ...], architecture: str) -> None:
    """A number of axes that an architecture can have.

    Raises:
        TypeError, ValueError: it is something else.
    """
    check_integer("ndim", ndim, 1, 3)
    if ndim not in ndims:
        raise ValueError(f"ndim is {ndim}; want {ndims[0]} with architecture {architecture!r}")


def chosen(owner: str, defaults: dict[str, int], **given: int | None) -> dict[str, int]:
    """``defaults`` with the given sizes in their place; ``None`` isn't given.

    Raises:
        TypeError: a size isn't an integer.
        ValueError: a size is out of range, or not among ``defaults``.
    """
    sizes = dict(defaults)
    for name, value in given.items():
        if value is None:
            continue
        check_integer(name, value, *RANGES[name], optional=True)
        if name not in defaults:
            raise ValueError(f"{name} is {value}; want None with {owner}")
        sizes[name] = value
    return sizes
