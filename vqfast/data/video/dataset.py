"""A set of equally long clips."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vqfast.data import disk
from vqfast.data.images.dataset import LUMA
from vqfast.data.items import Items
from vqfast.data.video.folder import VideoFiles

if TYPE_CHECKING:
    from typing_extensions import Self

KEPT = 256 << 20  # bytes of clips that are kept as they were decoded


class Clips(Items):
    """A set of equally long clips of videos, read when they are needed; ``load_video`` makes one.

    Attributes:
        shape: ``(C, T, H, W)`` of a clip.
        rate: frames of a clip a second; None where no file says it.
        actions: int64 ``(N, T)``, the action that led to each frame, or None.
        num_actions: how many actions there are; None without actions.
        labels: int64 ``(N,)``, or None.
        num_classes: the largest label of the loaded set plus 1, which the parts of a split keep; or None.

    >>> import tempfile
    >>> from vqfast.data import load_video
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/walk.npy", np.zeros((40, 24, 32, 3), np.uint8))
    ...     np.save(f"{folder}/walk.actions.npy", np.arange(40) % 3)
    ...     clips = load_video(folder, frames=8, stride=2, size=(12, 16))
    ...     x = clips.batch([1, 0])
    >>> x.shape, clips.places
    (torch.Size([2, 3, 8, 12, 16]), [('walk.npy', 0), ('walk.npy', 16)])
    >>> clips.actions[0], clips.num_actions
    (array([0, 2, 1, 0, 2, 1, 0, 2]), 3)
    """

    item = "clip"

    def __init__(
        self,
        videos: VideoFiles,
        name: str,
        size: tuple[int, int] | None,
        channels: int | None,
        num_actions: int | None,
    ) -> None:
        super().__init__(videos, name, videos.labels)
        channels = channels or (1 if all(video.grey for video in videos.used) else 3)
        self.shape = (channels, videos.frames, *(size or videos.common_size()))
        rates = sorted(video.rate for video in videos.used if video.rate is not None)
        self.rate = float(rates[len(rates) // 2]) / videos.stride if rates else None
        self.actions = videos.actions
        self.num_actions: int | None = None
        if self.actions is not None:
            largest = int(self.actions.max())
            self.num_actions = largest + 1 if num_actions is None else num_actions
            if largest >= self.num_actions:
                raise ValueError(f"{name} has the action {largest}; want 0..{self.num_actions - 1}")
        self._videos = videos
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = Lock()

    @property
    def names(self) -> list[str]:
        """Of the video of each clip, relative to the folder."""
        return [name for name, _ in self.places]

    @property
    def places(self) -> list[tuple[str, int]]:
        """The name of the video of each clip, and the number of its first frame there."""
        names, firsts = self._videos.names, self._videos.first_of.tolist()
        return [(names[number], firsts[number]) for number in self._numbers.tolist()]

    def batch(self, numbers: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The clips of these numbers, as float32 ``(len(numbers), C, T, H, W)`` in [0, 1].

        Args:
            numbers: integers in 0..N-1, in any order, repeated or not.

        Raises:
            TypeError: ``numbers`` is no list of integers.
            ValueError: a number is out of range.
            Unreadable: files can't be read; it names all of those among ``numbers``.
        """
        own = self._own(numbers).tolist()
        if not own:
            return torch.empty(0, *self.shape)
        with self._lock:
            clips = {number: self._kept[number] for number in own if number in self._kept}
        missing = np.array([number for number in own if number not in clips], np.int64)
        clips |= self._videos.read(missing, self._finished) if missing.size else {}
        with self._lock:
            for number in own:
                self._kept[number] = clips[number]
                self._kept.move_to_end(number)
            while len(self._kept) * clips[own[0]].nbytes > KEPT:
                self._kept.popitem(last=False)
        pixels = torch.from_numpy(np.stack([clips[number] for number in own]))
        return pixels.permute(0, 4, 1, 2, 3).float().div_(255).contiguous()

    def _finished(self, frame: np.ndarray) -> np.ndarray:
        """A frame ``(H, W)`` or ``(H, W, 3)`` in the size and the colours of the set, ``(H, W, C)``."""
        if frame.shape[:2] != self.shape[2:]:
            from PIL import Image, ImageOps

            picture = Image.fromarray(np.ascontiguousarray(frame))
            frame = np.asarray(
                ImageOps.fit(picture, (self.shape[3], self.shape[2]), Image.Resampling.BICUBIC)
            )
        if frame.ndim == 2:
            return frame[..., None].repeat(self.shape[0], axis=2)
        return frame if self.shape[0] == 3 else (frame @ np.array(LUMA)).round().astype(np.uint8)[..., None]

    def split(self, val: float, *, seed: int, group: str | None = None) -> tuple[Self, Self]:
        """Splits into a training part and a held-out part; the clips of a video stay together.

        Videos are held out at random; of a single one, its end.

        Args:
            val, seed, group: see ``Items.split``; a group is one of videos.

        Raises:
            TypeError, ValueError: see ``Items.split``.
        """
        videos = self._videos.video_of[self._numbers]
        held_out = round(val * len(self)) if isinstance(val, float) else 0
        if group is None and (videos == videos[0]).all() and 0 < held_out < len(self):
            numbers = np.arange(len(self))
            return self.subset(numbers[:-held_out]), self.subset(numbers[-held_out:])
        return super().split(val, seed=seed, group=group)

    def _alone(self) -> np.ndarray:
        return np.unique(self._videos.video_of[self._numbers], return_inverse=True)[1]

    def subset(self, numbers: np.ndarray) -> Self:
        """See ``Items``."""
        subset = super().subset(numbers)
        subset.actions = None if self.actions is None else self.actions[numbers]
        return subset

    def _layout(self) -> str:
        return super()._layout() + f" {self.rate}"

    @property
    def findings(self) -> dict[str, Any]:
        """As ``Items.findings``, and the rate and the number of actions."""
        return {**super().findings, "rate": self.rate, "num_actions": self.num_actions}

    def summary(self) -> str:
        """Colours, sizes and lengths, in words."""
        channels, frames, height, width = self.shape
        videos = disk.quantity(len(self._videos.used), "video")
        kind = f"{'grey' if channels == 1 else 'RGB'} {width}x{height}, {disk.quantity(frames, 'frame')}"
        stride = "" if self._videos.stride == 1 else f", every {self._videos.stride} of the video"
        rate = "" if self.rate is None else f", {self.rate:.4g} a second"
        actions = "" if self.num_actions is None else f", {self.num_actions} actions"
        return f"of {videos}, {kind}{stride}{rate}{actions}"
