"""Video, frame by frame: a network of images makes a grid of codes of each frame."""

from __future__ import annotations

from torch import Tensor, nn

from vqfast.checks import check_flags


def network_axes(ndim: int, frame_by_frame: bool) -> int:
    """How many spatial axes the network of a model of ``ndim`` axes has.

    Raises:
        TypeError: ``frame_by_frame`` isn't a bool.
        ValueError: the model has no frames.
    """
    check_flags(frame_by_frame=frame_by_frame)
    if frame_by_frame and ndim != 3:
        raise ValueError(f"frame_by_frame is True; want False with ndim {ndim!r}")
    return 2 if frame_by_frame else ndim


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
        shown: Tensor = of_frames.unflatten(0, (num, frames)).transpose(1, 2)
        return shown
