"""The attention of the executor in plain PyTorch: keys and values of earlier positions are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from vqfast.sampling.attention import Attention


class Kept:
    """The keys and values of the earlier positions, for each sample and head.

    Args:
        step: the attention.
        known: ``(B, H, W)``, of the grid of codes.
        weight: a weight, whose dtype the values have.
        key_channels: of all heads.
    """

    def __init__(self, step: Attention, known: Tensor, weight: Tensor, key_channels: int) -> None:
        self.step, self.count = step, 0
        size = len(known), step.heads, known[0].numel()
        self.keys = weight.new_empty(*size, key_channels // step.heads)
        self.values = weight.new_empty(*size, step.width // step.heads)

    def append(self, key: Tensor, value: Tensor) -> None:
        """Keeps the key and the value ``(B, C)`` of the next position."""
        for kept, new in ((self.keys, key), (self.values, value)):
            kept[:, :, self.count] = new.unflatten(1, (self.step.heads, -1))
        self.count += 1

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention's value ``(B, width)`` at the next position, given ``(B, C)`` there."""
        if self.step.own:
            self.append(key, value)
        keys, values = self.keys[:, :, : self.count], self.values[:, :, : self.count]
        query = query.unflatten(1, (self.step.heads, -1)).unsqueeze(2)
        weights = torch.softmax(self.step.scale * query @ keys.mT, dim=-1)
        return torch.flatten(weights @ values, 1)
