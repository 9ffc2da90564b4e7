"""One video file, read by PyAV (FFmpeg's libraries): its frames in the order of their times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vqfast.data.video.container import is_cut_off
from vqfast.files import open_file

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".m2ts", ".ogv"),
    *(".wmv", ".flv", ".3gp"),
}
# No playlists or lists of files, which would open other files and addresses.
DEMUXERS = "mov,mp4,matroska,webm,avi,gif,mpeg,mpegvideo,mpegts,ogg,asf,flv"
# Codecs of which a packet is a frame, so that packets tell the frames; files of others are decoded for it.
PACKET_IS_FRAME = {"h264", "hevc", "vp9", "av1", "mjpeg", "ffv1", "gif", "mpeg1video", "mpeg2video", "png"}
EXTRA = "reading video takes PyAV: pip install 'vqfast[video]'"


class VideoFile(NamedTuple):
    """What a file says of its frames.

    Args:
        path: the file.
        size: height and width of a frame, upright.
        grey: whether it has no colour.
        rate: frames a second, the mean where they are spread unevenly; None where it isn't known.
        num: frames.
        times: of each frame in the file's unit, rising; None where packets don't tell them.
        starts: times of the frames at which decoding can begin, rising.
    """

    path: Path
    size: tuple[int, int]
    grey: bool
    rate: Fraction | None
    num: int
    times: np.ndarray | None
    starts: np.ndarray

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Frames, uint8 ``(H, W)`` or ``(H, W, 3)``.

        Args:
            numbers: of the frames, rising.

        Raises:
            Exception: nearly any, if they can't be read.
        """
        if self.times is None or self.path.suffix.lower() == ".gif":
            yield from self._from_start(numbers)
            return
        wanted = self.times[np.asarray(numbers)].tolist()
        start = self.starts[max(0, int(np.searchsorted(self.starts, wanted[0], side="right")) - 1)]
        given = 0
        for time, frame in _decoded(self.path, int(start)):
            if time == wanted[given]:
                yield self._pixels(frame)
                given += 1
            if given == len(wanted):
                return
            if time is None or time > wanted[given]:  # the place in the file that was sought is behind it
                break
        yield from self._from_start(numbers[given:])

    def _from_start(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        wanted = iter(numbers)
        number: int | None = next(wanted)
        for place, (_, frame) in enumerate(_decoded(self.path)):
            if place == number:
                yield self._pixels(frame)
                number = next(wanted, None)
            if number is None:
                return
        raise ValueError(f"frame {number} can't be decoded")

    def _pixels(self, frame: VideoFrame) -> np.ndarray:
        pixels: np.ndarray = frame.to_ndarray(format="gray" if self.grey else "rgb24")
        upright = np.rot90(pixels, _quarter_turns(frame))
        if upright.shape[:2] != self.size:
            found, size = upright.shape, self.size
            raise ValueError(f"a frame is {found[1]}x{found[0]}; want {size[1]}x{size[0]}, as the first")
        return upright


def open_video(file: Path, *, whole: bool = False) -> VideoFile:
    """Finds the frames of a file.

    Args:
        whole: decodes all of it, so that damage shows.

    Raises:
        Exception: nearly any, if the file can't be read, is cut off or has no frame.
    """
    with _opened(file) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        if any(packet.is_corrupt for packet in packets):
            raise ValueError("it is damaged or cut off")
        times = sorted({packet.pts for packet in packets if packet.pts is not None})
        starts = sorted({p.pts for p in packets if p.is_keyframe and p.pts is not None})
        known = stream.codec_context.name in PACKET_IS_FRAME and len(times) == len(packets)
        rate = stream.average_rate
    first, num = None, 0
    for _, frame in _decoded(file):
        first = first or frame
        num += 1
        if known and not whole:
            break
    if first is None:
        raise ValueError("it has no frame")
    if known and whole and num < len(times):
        raise ValueError(f"it has {len(times)} frames, of which {num} can be decoded")
    sideways = _quarter_turns(first) % 2
    return VideoFile(
        file,
        (first.width, first.height) if sideways else (first.height, first.width),
        first.format.name.startswith(("gray", "mono")),
        rate or None,
        len(times) if known else num,
        np.array(times) if known and starts else None,
        np.array(starts),
    )


def _decoded(file: Path, start: int | None = None) -> Iterator[tuple[int | None, VideoFrame]]:
    """Frames and their times, from one at or before ``start`` on."""
    with _opened(file) as (container, stream):
        if start is not None:
            container.seek(start, stream=stream)
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise ValueError("it is damaged: a frame can't be decoded whole")
            yield frame.pts, frame


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, Any]]:
    try:
        import av
    except ImportError:
        raise ModuleNotFoundError(EXTRA) from None
    with open_file(file) as opened:
        if is_cut_off(opened):
            raise ValueError("it is cut off: its container says that there should be more")
        with av.open(
            opened, options={"format_whitelist": DEMUXERS, "protocol_whitelist": "none"}
        ) as container:
            if not container.streams.video:
                raise ValueError("it has no video")
            yield container, container.streams.video[0]


def _quarter_turns(frame: VideoFrame) -> int:
    """How often a frame is to be turned by 90 degrees counterclockwise to stand upright."""
    return round(frame.rotation / 90)
