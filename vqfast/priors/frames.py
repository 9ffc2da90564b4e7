"""The network that tells a prior of one frame what the frames before it and the actions say."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Memory = list[Tensor]  # what each block keeps of the frames before: (B, num_frames - 1, channels, H, W)


class ActionBias(nn.Module):
    """A scale and a shift of each channel by the action that led to a frame."""

    def __init__(self, channels: int, num_actions: int, **factory: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(num_actions + 1, 2 * channels, **factory)  # the first: no action is known
        nn.init.normal_(self.table.weight, std=0.5)

    def forward(self, x: Tensor, actions: Tensor) -> Tensor:
        """``x (N, channels, H, W)`` of frames whose ``actions (N,)`` are -1 to ``num_actions - 1``."""
        scale, shift = self.table(actions + 1)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(x + shift, x, scale)


class Move(nn.Module):
    """For each action a kernel of each channel, which can move what is in the last frame.

    It starts at zero: with no effect.
    """

    def __init__(self, channels: int, kernel_size: int, num_actions: int | None, **factory: Any) -> None:
        super().__init__()
        size = (1 + (num_actions or 0), channels, kernel_size, kernel_size)  # the first: no action is known
        self.kernels = nn.Parameter(torch.zeros(size, **factory))

    def forward(self, x: Tensor, actions: Tensor | None) -> Tensor:
        """``x (N, channels, H, W)`` of frames whose ``actions (N,)`` are -1 to ``num_actions - 1``."""
        numbers = torch.zeros(len(x), dtype=torch.int64, device=x.device) if actions is None else actions + 1
        kernels = self.kernels[numbers].flatten(0, 1).unsqueeze(1)
        each = x.flatten(0, 1).unsqueeze(0)
        moved = F.conv2d(each, kernels, padding=kernels.shape[-1] // 2, groups=len(kernels))
        return moved.view_as(x)


class FrameBlock(nn.Module):
    """A residual block: a 3x3 convolution of each frame, the action, and a look at the frames before.

    Args:
        channels: of the input, inside, and of the output.
        num_frames: how many frames the 1x1 convolution at the end reads, the frame itself among them.
        num_actions: of the action; ``None`` for none.
    """

    def __init__(self, channels: int, num_frames: int, num_actions: int | None, **factory: Any) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, **factory)
        self.action = None if num_actions is None else ActionBias(channels, num_actions, **factory)
        self.look = nn.Conv2d(num_frames * channels, channels, 1, **factory)

    def forward(self, x: Tensor, actions: Tensor | None, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """The output, and what the next frames need.

        Args:
            x: ``(B, T, channels, H, W)``.
            actions: int64 ``(B, T)``, if the block has some.
            memory: what the call for the frames before returned; ``None`` at the start of a clip.
        """
        num, frames = x.shape[:2]
        flat = x.flatten(0, 1)
        inner = self.conv(flat.relu())
        if self.action is not None and actions is not None:
            inner = self.action(inner, actions.flatten())
        inner = inner.relu().unflatten(0, (num, frames))
        none = inner.new_zeros(num, self.num_frames - 1, *inner.shape[2:])
        seen = torch.cat([none if memory is None else memory, inner], 1)
        together = torch.cat([seen[:, i : i + frames] for i in range(self.num_frames)], 2)
        change: Tensor = self.look(together.flatten(0, 1))
        return (flat + change).unflatten(0, (num, frames)), seen[:, frames:]


class FrameNetwork(nn.Module):
    """From the codes of each frame and the actions to a map for the frame after it.

    The map begins as the vectors of the codes of the last frame, at their places, so that a prior can copy
    it at once, and those that the action moves. Each block adds what it sees around a place, in the last
    frames. Rows and columns, each from -1 to 1, tell the places apart: what an action does isn't the same in
    all of them.

    Args:
        num_embeddings: K, the number of codes.
        channels: of the map, and of all blocks.
        num_blocks: each sees one cell farther around, and ``num_frames - 1`` frames farther back.
        num_frames: how many frames a block reads.
        kernel_size: of the kernels of the actions, odd.
        num_actions: ``None`` for clips without actions.
        device, dtype: of the parameters, as in ``torch.nn``.
    """

    def __init__(
        self,
        num_embeddings: int,
        channels: int,
        num_blocks: int,
        num_frames: int,
        kernel_size: int,
        num_actions: int | None,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings + 1, channels, **factory)  # the last: no frame yet
        self.place = nn.Conv2d(2, channels, 1, bias=False, **factory)
        self.move = Move(channels, kernel_size, num_actions, **factory)
        self.blocks = nn.ModuleList(
            FrameBlock(channels, num_frames, num_actions, **factory) for _ in range(num_blocks)
        )

    def forward(
        self, before: Tensor, actions: Tensor | None, memory: Memory | None = None
    ) -> tuple[Tensor, Memory]:
        """The maps of T frames, and what the call for the frames after them needs.

        Args:
            before: int64 ``(B, T, H, W)``, for each frame the codes of the frame before it; K before the
                first frame.
            actions: int64 ``(B, T)``, the action that led to each frame, -1 where it isn't known; ``None``
                without actions.
            memory: what the call for the frames before these returned; ``None`` at the start of a clip.

        Returns:
            ``(B, T, channels, H, W)``, and the memory.
        """
        x: Tensor = self.embedding(before).movedim(-1, 2)
        x = x + self.place(_places(*before.shape[2:], like=x))
        flat = x.flatten(0, 1)
        x = x + self.move(flat, None if actions is None else actions.flatten()).view_as(x)
        kept: Memory = []
        for number, block in enumerate(self.blocks):
            x, seen = block(x, actions, None if memory is None else memory[number])
            kept.append(seen)
        return x, kept


def _places(height: int, width: int, *, like: Tensor) -> Tensor:
    """``(1, 2, H, W)``: the row and the column of each place, from -1 to 1."""
    rows, columns = ((2 * torch.arange(n, device=like.device) + 1) / n - 1 for n in (height, width))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")).unsqueeze(0).to(like)
