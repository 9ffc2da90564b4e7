"""VQ-VAE models: an encoder, a ``VQLayer`` and a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from vqfast.checks import (
    Device,
    check_choice,
    check_device,
    check_integer,
    check_placement,
    check_tensor,
)
from vqfast.functional.autocast import autocast_dtype
from vqfast.models.architectures import ARCHITECTURES, RANGES
from vqfast.nn.calls import typed_as
from vqfast.nn.sharded import whole
from vqfast.nn.vq import VQLayer

CONFIGS: dict[str, dict[str, Any]] = {
    "paper": {"architecture": "paper"},
    "paper-speech": {"architecture": "paper", "in_channels": 1, "ndim": 1, "num_downsamplings": 6},
    "paper-video": {"architecture": "paper", "ndim": 3},
    "keras": {"architecture": "keras", "in_channels": 1, "num_embeddings": 128, "embedding_dim": 16},
    "ruseckas": {"architecture": "ruseckas", "num_embeddings": 256, "embedding_dim": 16},
}


class VQVAEOutput(NamedTuple):
    """What a ``VQVAE`` returns.

    Attributes:
        reconstruction: the decoder's output, of the input's shape.
        indices: int64 ``(B, *code_shape)``.
        loss: the quantiser's, a scalar to add to the reconstruction loss.

    Example:
        >>> out = vqfast.VQVAE(hidden_channels=8)(torch.randn(2, 3, 16, 16))
        >>> out.reconstruction.shape, out.indices.shape, out.loss.shape
        (torch.Size([2, 3, 16, 16]), torch.Size([2, 4, 4]), torch.Size([]))
    """

    reconstruction: Tensor
    indices: Tensor
    loss: Tensor


def _axes(first: str, ndim: int) -> str:
    return f"({first}, {('T', 'H, W', 'T, H, W')[ndim - 1]})"


class VQVAE(nn.Module):
    """A VQ-VAE: audio ``(B, C, T)``, images ``(B, C, H, W)`` or video ``(B, C, T, H, W)`` to codes and back.

    Architectures:

    - ``"paper"``: van den Oord et al. 2017 (arXiv 1711.00937), section 4.1, for ``ndim`` 1 to 3: strided
      convolutions with kernels of width 4, residual blocks, and the mirror image as decoder.
      ``CONFIGS["paper-speech"]`` has the paper's speech encoder, 64 times shorter, but the mirrored decoder
      instead of a WaveNet. ``CONFIGS["paper-video"]`` is the image model with a third axis.
    - ``"keras"``: the Keras example "Vector-Quantized Variational Autoencoders".
    - ``"ruseckas"``: J. Ruseckas' notebook "vq-vae", whose output is in 0 to 1. Kernels (3x3) and widths
      (doubling up to ``hidden_channels``) are our choice. In training the batch normalisation joins the
      batches of all ranks.

    Args:
        architecture: ``"paper"``, ``"keras"`` or ``"ruseckas"``, see below.
        in_channels: C.
        ndim: the number of spatial axes; 2 for ``"keras"`` and ``"ruseckas"``.
        hidden_channels: the width of the widest layer; ``None`` for 256, or 64 for ``"keras"``.
        num_downsamplings: how many times every axis is halved; ``None`` for 2, or 5 for ``"ruseckas"``.
        num_residual_blocks: ``None`` for 2 in ``"paper"``; the others have none.
        num_embeddings, embedding_dim, beta, decay: of the ``VQLayer``.
        device, dtype: of all parameters and buffers, as in ``torch.nn``.

    Attributes:
        config: a JSON-able dict; ``VQVAE(**model.config)`` is a new model of the same kind.
        stride: every spatial size of an input must be a multiple of it.
        encoder, vq, decoder: the three modules.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or doesn't go with the architecture.

    Example:
        >>> model = vqfast.VQVAE(hidden_channels=32)
        >>> reconstruction, indices, loss = model(torch.rand(1, 3, 32, 32))
        >>> reconstruction.shape, indices.shape
        (torch.Size([1, 3, 32, 32]), torch.Size([1, 8, 8]))
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
        check_choice("architecture", architecture, ARCHITECTURES)
        build, ndims, defaults = ARCHITECTURES[architecture]
        check_integer("in_channels", in_channels)
        check_integer("ndim", ndim, 1, 3)
        if ndim not in ndims:
            raise ValueError(f"ndim is {ndim}; want {ndims[0]} with architecture {architecture!r}")
        options = dict(defaults)
        given = {
            "hidden_channels": hidden_channels,
            "num_downsamplings": num_downsamplings,
            "num_residual_blocks": num_residual_blocks,
        }
        for name, value in given.items():
            if value is None:
                continue
            check_integer(name, value, *RANGES[name], optional=True)
            if name not in defaults:
                raise ValueError(f"{name} is {value}; want None with architecture {architecture!r}")
            options[name] = value

        self.config: dict[str, Any] = {
            "architecture": architecture,
            "in_channels": in_channels,
            "ndim": ndim,
            **options,
            "num_embeddings": num_embeddings,
            "embedding_dim": embedding_dim,
            "beta": beta,
            "decay": decay,
        }
        self.stride: int = 2 ** options["num_downsamplings"]
        with nullcontext() if device is None else torch.device(device):
            self.vq = VQLayer(num_embeddings, embedding_dim, beta=beta, decay=decay)
            self.encoder, self.decoder = build(ndim, in_channels, embedding_dim, **options)
        self.to(dtype=dtype)

    @classmethod
    def named(cls, name: str, **overrides: Any) -> VQVAE:
        """The model of ``CONFIGS[name]``, with ``overrides`` in place of some of its arguments.

        Raises:
            TypeError, ValueError: ``name`` isn't one of ``CONFIGS``; or as in the constructor.

        Example:
            >>> vqfast.VQVAE.named("paper-speech", hidden_channels=16).code_shape((6400,))
            (100,)
        """
        check_choice("name", name, CONFIGS)
        return cls(**{**CONFIGS[name], **overrides})

    def forward(self, x: Tensor) -> VQVAEOutput:
        """Encodes, quantises and decodes ``x``.

        Args:
            x: floating point ``(B, in_channels, *spatial)``, of the model's dtype.

        Raises:
            TypeError: ``x`` isn't a floating-point tensor, or has another dtype than the model.
            ValueError: the shape doesn't fit the model, ``x`` is empty, or is on another device.
        """
        quantized, indices, loss = self.vq(self._z_e(x))
        return VQVAEOutput(self.decoder(quantized), indices, loss)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self, *args: Any, **options: Any) -> Any: ...

    @whole
    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The codes of ``x``.

        Args:
            x: as in ``forward``.

        Returns:
            int64 ``(B, *code_shape(spatial))``.

        Raises:
            TypeError, ValueError: as in ``forward``.
        """
        return self.vq.encode(self._z_e(x))

    @whole
    def decode(self, indices: Tensor) -> Tensor:
        """What the decoder makes of codes.

        Args:
            indices: integer ``(B, *code_shape)``, -1 to K - 1; -1 stands for a zero vector.

        Returns:
            ``(B, in_channels, *spatial)``.

        Raises:
            TypeError: ``indices`` isn't an integer tensor.
            ValueError: an index is out of range, the shape isn't the model's or is empty, or the devices
                differ.

        Example:
            >>> model = vqfast.VQVAE(hidden_channels=32)
            >>> model.decode(torch.randint(512, (1, 8, 8))).shape
            torch.Size([1, 3, 32, 32])
        """
        quantized, ndim = self.vq.decode(indices), self.config["ndim"]
        if indices.ndim != ndim + 1 or indices.numel() == 0:
            raise ValueError(f"indices has shape {tuple(indices.shape)}; want {_axes('B', ndim)}, not empty")
        decoded: Tensor = self.decoder(quantized)
        return decoded

    def code_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The spatial shape of the codes of inputs ``(B, in_channels, *spatial)``.

        Raises:
            TypeError: ``spatial`` isn't a sequence of integers.
            ValueError: the model doesn't take that size.

        Example:
            >>> vqfast.VQVAE(hidden_channels=32).code_shape((32, 64))
            (8, 16)
        """
        if not isinstance(spatial, Sequence) or not all(
            isinstance(size, Integral) and not isinstance(size, bool) for size in spatial
        ):
            raise TypeError(f"spatial is {spatial!r}; want {self._spatial}")
        self._check_spatial(spatial)
        return tuple(size // self.stride for size in spatial)

    @property
    def _spatial(self) -> str:
        return f"{self.config['ndim']} positive multiples of the stride {self.stride}"

    def _check_spatial(self, spatial: Sequence[int]) -> None:
        # no check of types, as traced sizes are tensors
        if len(spatial) != self.config["ndim"] or any(size < 1 or size % self.stride for size in spatial):
            raise ValueError(f"spatial is {tuple(spatial)}; want {self._spatial}")

    def _z_e(self, x: Tensor) -> Tensor:
        ndim, channels = self.config["ndim"], self.config["in_channels"]
        check_tensor("x", x)
        if not x.is_floating_point():
            raise TypeError(f"x has dtype {x.dtype}; want a floating-point one")
        if x.ndim != ndim + 2 or x.shape[1] != channels or x.shape[0] == 0:
            raise ValueError(f"x has shape {tuple(x.shape)}; want {_axes(f'B, {channels}', ndim)}, not empty")
        parameter = next(self.parameters())
        if x.dtype != parameter.dtype and autocast_dtype(x) is None:
            raise TypeError(f"x has dtype {x.dtype}; want the model's, {parameter.dtype}")
        check_device("x", x, "the model", parameter.device)
        self._check_spatial(x.shape[2:])
        encoded: Tensor = self.encoder(x)
        return encoded
