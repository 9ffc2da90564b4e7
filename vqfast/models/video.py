"""Video, frame by frame: a network of images makes a grid of codes of each frame."""

from __future__ import annotations

from torch import Tensor, nn


class FrameByFrame(nn.Module):
    """A network of images ``(B, C, H, W)``, applied to each frame of video ``(B, C, T, H, W)``.

    Args:
        images: the network.
    """

    def __init__(self, images: nn.Module) -> None:
        super().__init__()
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        """What the network makes of each frame, ``(B, C', T, H', W')``."""
        num, _, frames = x.shape[:3]
        of_frames: Tensor = self.images(x.transpose(1, 2).flatten(0, 1))
        return of_frames.unflatten(0, (num, frames)).transpose(1, 2)
