"""VQ-VAE models that people know: an encoder, a ``VQLayer`` and a decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vqfast.checks import Device, check_integer, check_placement
from vqfast.functional.autocast import autocast_dtype
from vqfast.nn import ranks
from vqfast.nn.sharded import whole
from vqfast.nn.vq import VQLayer

# what each architecture has to set beside the common arguments, and its default
_DEFAULTS: dict[str, dict[str, int]] = {
    "paper": {"hidden_channels": 256, "num_downsamplings": 2, "num_residual_blocks": 2},
    "keras": {"hidden_channels": 64, "num_downsamplings": 2},
    "ruseckas": {"hidden_channels": 256, "num_downsamplings": 5},
}

RANGES = {
    "hidden_channels": (1,),
    "num_downsamplings": (1, 62),  # the stride is 2 to that power
    "num_residual_blocks": (0,),
}

CONFIGS: dict[str, dict[str, Any]] = {
    "paper": {"architecture": "paper"},
    "paper-speech": {"architecture": "paper", "in_channels": 1, "ndim": 1, "num_downsamplings": 6},
    "paper-video": {"architecture": "paper", "ndim": 3},
    "keras": {"architecture": "keras", "in_channels": 1, "num_embeddings": 128, "embedding_dim": 16},
    "ruseckas": {"architecture": "ruseckas", "num_embeddings": 256, "embedding_dim": 16},
}


class VQVAEOutput(NamedTuple):
    """What a ``VQVAE`` returns.

    ``reconstruction``: the input's shape. ``indices``: int64 ``(B, *code_shape)``. ``loss``: the
    quantiser's, a scalar (codebook + beta * commitment); add the reconstruction loss to it.
    """

    reconstruction: Tensor
    indices: Tensor
    loss: Tensor


class _SumOverRanks(torch.autograd.Function):
    """all_reduce with its gradient: each rank's loss depends on all terms, so the gradients add up too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _SumOverRanks.apply(grad)


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the joined batch of all ranks, whatever each one's share, where
    ``torch.distributed`` runs several: what ``nn.SyncBatchNorm`` does, which refuses the CPU.

    Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 1. Input and output are floating, ``(B, C, H, W)``.

    Raises:
        ValueError: the input has another rank or, in training and alone, one value a channel.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)  # affine, with running statistics: forward counts on both

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and ranks.several()):
            return super().forward(x)
        self._check_input_dim(x)
        y = x.to(torch.promote_types(x.dtype, torch.float32)).movedim(1, -1)
        local = torch.cat([y.sum((0, 1, 2)), y.new_tensor([y[..., 0].numel()])])
        total, count = _SumOverRanks.apply(local).split([self.num_features, 1])
        mean = total / count
        y = y - mean  # before squaring: E[x^2] - E[x]^2 would cancel
        var = _SumOverRanks.apply(y.square().sum((0, 1, 2))) / count
        with torch.no_grad():
            unbiased = var * count / (count - 1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        y = y * (var + self.eps).rsqrt() * self.weight + self.bias
        return y.movedim(-1, 1).to(x.dtype)


class _ResidualBlock(nn.Module):
    def __init__(self, conv: type[nn.Module], channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(), conv(channels, channels, 3, padding=1), nn.ReLU(), conv(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _paper(
    ndim: int, channels: int, dim: int, hidden_channels: int, num_downsamplings: int, num_residual_blocks: int
) -> tuple[nn.Sequential, nn.Sequential]:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[ndim - 1]
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[ndim - 1]
    widths = [channels] + [hidden_channels] * num_downsamplings
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        down += [conv(narrow, wide, 4, 2, 1), nn.ReLU()]
        up = [nn.ReLU(), transposed(wide, narrow, 4, 2, 1), *up]
    # no ReLU after the last strided conv: a residual block begins with one
    down, blocks = down[:-1], range(num_residual_blocks)
    return (
        nn.Sequential(
            *down,
            *(_ResidualBlock(conv, hidden_channels) for _ in blocks),
            nn.ReLU(),
            conv(hidden_channels, dim, 1),
        ),
        nn.Sequential(
            conv(dim, hidden_channels, 3, padding=1),
            *(_ResidualBlock(conv, hidden_channels) for _ in blocks),
            *up,
        ),
    )


def _widths(hidden_channels: int, num_downsamplings: int) -> list[int]:
    """Doubling with every downsampling, up to ``hidden_channels``."""
    first = hidden_channels >> (num_downsamplings - 1)
    if first << (num_downsamplings - 1) != hidden_channels:
        wanted = f"a multiple of 2 ** (num_downsamplings - 1) = {1 << (num_downsamplings - 1)}"
        raise ValueError(f"hidden_channels is {hidden_channels}; want {wanted}")
    return [first << i for i in range(num_downsamplings)]


def _keras(
    ndim: int, channels: int, dim: int, hidden_channels: int, num_downsamplings: int
) -> tuple[nn.Sequential, nn.Sequential]:
    widths = _widths(hidden_channels, num_downsamplings)
    # Keras' "same" for stride 2: the padding comes, and is cropped, at the far end only
    pad, crop = nn.ZeroPad2d((0, 1, 0, 1)), nn.ZeroPad2d((0, -1, 0, -1))
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for before, after in pairwise([channels, *widths]):
        down += [pad, nn.Conv2d(before, after, 3, 2), nn.ReLU()]
    for before, after in pairwise([dim, *widths[::-1]]):
        up += [nn.ConvTranspose2d(before, after, 3, 2), crop, nn.ReLU()]
    last = nn.ConvTranspose2d(widths[0], channels, 3, padding=1)
    return nn.Sequential(*down, nn.Conv2d(widths[-1], dim, 1)), nn.Sequential(*up, last)


def _ruseckas(
    ndim: int, channels: int, dim: int, hidden_channels: int, num_downsamplings: int
) -> tuple[nn.Sequential, nn.Sequential]:
    widths = _widths(hidden_channels, num_downsamplings)

    def conv(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, padding=1, bias=False), BatchNorm2d(after), nn.ReLU()]

    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for before, after in pairwise([channels, *widths]):
        down += [nn.MaxPool2d(2), *conv(before, after)]
    for before, after in pairwise([dim, *widths[::-1]]):
        up += [nn.Upsample(scale_factor=2), *conv(before, after)]
    last = nn.Conv2d(widths[0], channels, 3, padding=1)
    return nn.Sequential(*down, nn.Conv2d(widths[-1], dim, 1)), nn.Sequential(*up, last, nn.Sigmoid())


def _axes(first: str, ndim: int) -> str:
    return f"({first}, {('T', 'H, W', 'T, H, W')[ndim - 1]})"


_BUILDERS: dict[str, Callable[..., tuple[nn.Module, nn.Module]]] = {
    "paper": _paper,
    "keras": _keras,
    "ruseckas": _ruseckas,
}


class VQVAE(nn.Module):
    """A VQ-VAE: audio ``(B, C, T)``, images ``(B, C, H, W)`` or video ``(B, C, T, H, W)`` to codes and back.

    Args:
        architecture: ``"paper"`` is van den Oord et al. 2017 (arXiv 1711.00937), section 4.1, for ``ndim`` 1
            to 3: strided 4x4 convs, residual blocks, and the mirror image. ``CONFIGS["paper-speech"]`` has
            the speech encoder, 64 times shorter, but the mirrored decoder instead of the paper's WaveNet;
            ``"paper-video"`` is the image model with a third axis.
            ``"keras"`` is the Keras example "Vector-Quantized Variational Autoencoders".
            ``"ruseckas"`` is J. Ruseckas' notebook "vq-vae"; the output is in 0 to 1. Its kernels (3x3) and
            widths, doubling up to ``hidden_channels``, are our choice. In training its BatchNorm joins the
            batches of all ranks.
        in_channels: C.
        ndim: spatial axes; keras and ruseckas have 2.
        hidden_channels: the widest layer's; ``None`` for 256, keras 64.
        num_downsamplings: each halves every axis; ``None`` for 2, ruseckas 5.
        num_residual_blocks: ``None`` for the paper's 2; the others have none.
        num_embeddings, embedding_dim, beta, decay: of the ``VQLayer``.
        device, dtype: of all parameters and buffers, as in ``torch.nn``.

    Attributes:
        config: a JSON-able dict; ``VQVAE(**model.config)`` is the same model anew.
        stride: every spatial size of an input must be a multiple of it.
        encoder, vq, decoder: the three modules.

    Raises:
        TypeError: an argument isn't an integer.
        ValueError: an argument is out of range or doesn't go with the architecture.
    """

    def __init__(
        self,
        architecture: str = "paper",
        *,
        in_channels: int = 3,
        ndim: int = 2,
        hidden_channels: int | None = None,
        num_downsamplings: int | None = None,
        num_residual_blocks: int | None = None,
        num_embeddings: int = 512,
        embedding_dim: int = 64,
        beta: float = 0.25,
        decay: float | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_placement(device, dtype)
        if architecture not in _DEFAULTS:
            raise ValueError(f"architecture is {architecture!r}; want one of {', '.join(_DEFAULTS)}")
        ndims = (1, 2, 3) if architecture == "paper" else (2,)
        if ndim not in ndims:
            wanted = " or ".join(map(str, ndims))
            raise ValueError(f"ndim is {ndim!r}; want {wanted} with architecture {architecture!r}")
        own = dict(_DEFAULTS[architecture])
        given = {
            "hidden_channels": hidden_channels,
            "num_downsamplings": num_downsamplings,
            "num_residual_blocks": num_residual_blocks,
        }
        for name, value in given.items():
            if value is not None and name not in own:
                raise ValueError(f"{name} is {value!r}; want None with architecture {architecture!r}")
            if value is not None:
                own[name] = value
        check_integer("in_channels", in_channels)
        for name, value in own.items():
            check_integer(name, value, *RANGES[name])

        self.config: dict[str, Any] = {
            "architecture": architecture,
            "in_channels": in_channels,
            "ndim": ndim,
            **own,
            "num_embeddings": num_embeddings,
            "embedding_dim": embedding_dim,
            "beta": beta,
            "decay": decay,
        }
        self.stride: int = 2 ** own["num_downsamplings"]
        with nullcontext() if device is None else torch.device(device):
            self.vq = VQLayer(num_embeddings, embedding_dim, beta=beta, decay=decay)
            self.encoder, self.decoder = _BUILDERS[architecture](ndim, in_channels, embedding_dim, **own)
        self.to(dtype=dtype)

    @classmethod
    def named(cls, name: str, **overrides: Any) -> VQVAE:
        """The model of ``CONFIGS[name]``, with some arguments replaced.

        Raises:
            ValueError: there is no such name.
        """
        if name not in CONFIGS:
            raise ValueError(f"name is {name!r}; want one of {', '.join(CONFIGS)}")
        return cls(**{**CONFIGS[name], **overrides})

    def forward(self, x: Tensor) -> VQVAEOutput:
        """Encodes, quantises and decodes ``x``.

        Args:
            x: ``(B, in_channels, *spatial)``, of the model's dtype.

        Raises:
            TypeError: ``x`` isn't a floating-point tensor.
            ValueError: the shape doesn't fit the model, or ``x`` is empty.
        """
        quantized, indices, loss = self.vq(self._z_e(x))
        return VQVAEOutput(self.decoder(quantized), indices, loss)

    if TYPE_CHECKING:
        __call__ = forward

    @whole
    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The codes of ``x``, int64 ``(B, *code_shape(spatial))``; ``x`` and errors as in ``forward``."""
        return self.vq.encode(self._z_e(x))

    @whole
    def decode(self, indices: Tensor) -> Tensor:
        """Integer ``indices (B, *code_shape)`` to ``(B, in_channels, *spatial)``.

        Raises:
            TypeError: ``indices`` isn't an integer tensor.
            ValueError: an index is out of range, or the shape isn't the model's or is empty.
        """
        quantized, ndim = self.vq.decode(indices), self.config["ndim"]
        if indices.ndim != ndim + 1 or indices.numel() == 0:
            raise ValueError(f"indices has shape {tuple(indices.shape)}; want {_axes('B', ndim)}, not empty")
        return self.decoder(quantized)

    def code_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The codes' shape for inputs of shape ``(B, in_channels, *spatial)``.

        Raises:
            ValueError: the model doesn't take that size.
        """
        spatial, ndim = tuple(spatial), self.config["ndim"]
        if len(spatial) != ndim or any(size < 1 or size % self.stride for size in spatial):
            wanted = f"{ndim} positive multiples of the stride {self.stride}"
            raise ValueError(f"spatial is {spatial}; want {wanted}")
        return tuple(size // self.stride for size in spatial)

    def _z_e(self, x: Tensor) -> Tensor:
        ndim, channels = self.config["ndim"], self.config["in_channels"]
        if not isinstance(x, Tensor):
            raise TypeError(f"x is a {type(x).__name__}; want a tensor")
        if not x.is_floating_point():
            raise TypeError(f"x has dtype {x.dtype}; want a floating-point one")
        if x.ndim != ndim + 2 or x.shape[1] != channels or x.shape[0] == 0:
            raise ValueError(f"x has shape {tuple(x.shape)}; want {_axes(f'B, {channels}', ndim)}, not empty")
        dtype = next(self.parameters()).dtype
        if x.dtype != dtype and autocast_dtype(x) is None:
            raise TypeError(f"x has dtype {x.dtype}; want the model's, {dtype}")
        self.code_shape(x.shape[2:])
        return self.encoder(x)
