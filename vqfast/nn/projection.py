"""The way from ``z_e`` to the vectors that are coded, and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqfast.checks import Device, check_channels, check_floating, check_mask
from vqfast.nn import ranks
from vqfast.ops import dims


class Projection(nn.Module):
    """Linear maps into the width of the codes and out of it; where that is ``z_e``'s, neither.

    Args:
        embedding_dim: the channels of ``z_e``.
        width: those of what is coded.
        channel_dim: where the channels of ``z_e`` stand.
        last: whether the channels are wanted last in any case; otherwise they stay where nothing is mapped.

    Attributes:
        dim: where the channels of what is coded stand.
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
        maps = width != embedding_dim
        self.embedding_dim, self.channel_dim = embedding_dim, channel_dim
        self.dim = -1 if maps or last else channel_dim
        self.project_in = nn.Linear(embedding_dim, width, device=device, dtype=dtype) if maps else None
        self.project_out = nn.Linear(width, embedding_dim, device=device, dtype=dtype) if maps else None

    def enter(self, z_e: Tensor, mask: Tensor | None) -> Tensor:
        """What is to be coded; zero where ``mask (B, *spatial)`` is ``False``.

        Raises:
            TypeError: ``z_e`` isn't a floating-point tensor, or ``mask`` no bool one.
            ValueError: a shape doesn't fit, or ``z_e`` is empty and no other rank could have vectors.
        """
        check_floating(z_e=z_e)
        if z_e.numel() == 0 and not ranks.several():
            raise ValueError(f"z_e has shape {tuple(z_e.shape)}; want at least one vector")
        check_channels(z_e, self.channel_dim, self.embedding_dim)
        check_mask(mask, z_e, self.channel_dim)
        if mask is not None:  # before the map: a NaN times a zero gradient is a NaN
            z_e = torch.where(mask.unsqueeze(self.channel_dim), z_e, 0)
        z = dims.move(z_e, self.channel_dim, self.dim)
        return z if self.project_in is None else self.project_in(z)

    def check_place(self, indices: Tensor, ndim: int) -> None:
        """Raises ValueError unless decoded ``indices``, of ``ndim`` dimensions, have ``channel_dim``."""
        if not -ndim <= self.channel_dim < ndim:
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}; want (B, *spatial) with vectors along dimension "
                f"{self.channel_dim}"
            )

    def leave(self, quantized: Tensor, mask: Tensor | None) -> Tensor:
        """Codes in the place of ``z_e``; zero where ``mask`` is ``False``."""
        if self.project_out is not None:
            quantized = self.project_out(quantized.to(self.project_out.weight.dtype))
        quantized = dims.move(quantized, self.dim, self.channel_dim)
        return quantized if mask is None else torch.where(mask.unsqueeze(self.channel_dim), quantized, 0)
