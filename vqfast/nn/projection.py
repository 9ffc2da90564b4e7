"""The way from ``z_e`` to the vectors that are compared with code vectors, and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqfast.checks import Device, check_channels, check_device, check_floating, check_integer, check_mask
from vqfast.nn import ranks
from vqfast.ops import dims

CHANNEL_DIMS = -5, 4  # vectors have up to five dimensions, batch and channels included


class Projection(nn.Module):
    """Linear maps into the width of the code vectors and back; without maps where that is ``embedding_dim``.

    Args:
        embedding_dim: the channels of ``z_e``.
        width: the channels of the vectors that are compared with code vectors.
        channel_dim: the dimension of the channels of ``z_e``.
        last: whether to move the channels last; they are moved in any case where there are maps.

    Attributes:
        dim: the dimension of the channels between ``enter`` and ``leave``.

    Raises:
        TypeError, ValueError: ``channel_dim`` isn't an integer, or is out of range.
    """

    def __init__(
        self,
        embedding_dim: int,
        width: int,
        channel_dim: int,
        *,
        last: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_integer("channel_dim", channel_dim, *CHANNEL_DIMS)
        maps = width != embedding_dim
        self.embedding_dim, self.channel_dim = embedding_dim, channel_dim
        self.dim = -1 if maps or last else channel_dim
        self.project_in = nn.Linear(embedding_dim, width, device=device, dtype=dtype) if maps else None
        self.project_out = nn.Linear(width, embedding_dim, device=device, dtype=dtype) if maps else None

    def reset_parameters(self) -> None:
        """Draws the maps anew, as ``torch.nn.Linear`` does."""
        for linear in (self.project_in, self.project_out):
            if linear is not None:
                linear.reset_parameters()

    def enter(self, z_e: Tensor, mask: Tensor | None) -> Tensor:
        """The vectors that are compared with code vectors; zero where ``mask (B, *spatial)`` is ``False``.

        Raises:
            TypeError: ``z_e`` isn't a floating-point tensor, or ``mask`` isn't a bool tensor.
            ValueError: a shape or a device doesn't fit, or ``z_e`` is empty and no other rank has vectors.
        """
        check_floating(z_e=z_e)
        if z_e.numel() == 0 and not ranks.several():
            raise ValueError(f"z_e has shape {tuple(z_e.shape)}; want at least one vector")
        check_channels(z_e, self.channel_dim, self.embedding_dim)
        check_mask(mask, z_e, self.channel_dim)
        if mask is not None:  # before the map: a NaN times a zero gradient is a NaN
            z_e = torch.where(mask.unsqueeze(self.channel_dim), z_e, 0)
        z = dims.move(z_e, self.channel_dim, self.dim)
        if self.project_in is None:
            return z
        check_device("z_e", z_e, "project_in", self.project_in.weight.device)
        mapped: Tensor = self.project_in(z)
        return mapped

    def check_place(self, indices: Tensor, ndim: int) -> None:
        """Raises ValueError unless ``channel_dim`` is one of the ``ndim`` dimensions of decoded vectors."""
        if not -ndim <= self.channel_dim < ndim:
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}; want (B, *spatial) with vectors along dimension "
                f"{self.channel_dim}"
            )

    def leave(self, quantized: Tensor, mask: Tensor | None) -> Tensor:
        """The way back from ``enter``, of code vectors; zero where ``mask`` is ``False``."""
        if self.project_out is not None:
            quantized = self.project_out(quantized.to(self.project_out.weight.dtype))
        quantized = dims.move(quantized, self.dim, self.channel_dim)
        return quantized if mask is None else torch.where(mask.unsqueeze(self.channel_dim), quantized, 0)
