"""Clips as files: MP4, GIF, or arrays."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
from torch import Tensor

from vqfast.data.protocol import Format
from vqfast.data.video.video_file import EXTRA

LARGEST = 1001  # denominator of a rate: those of television are multiples of 1/1001


def formats_at(rate: float) -> dict[str, Format]:
    """The formats of clips of a rate; files are named by the number of their first clip."""

    def each(encoded: Callable[[np.ndarray, float], bytes]) -> Callable[[Iterator[Tensor]], Iterator[bytes]]:
        return lambda batches: (encoded(clip, rate) for batch in batches for clip in to_frames(batch))

    def named(suffix: str) -> Callable[[range], list[str]]:
        return lambda numbers: [f"{number:07d}.{suffix}" for number in numbers]

    return {
        "mp4": Format(named("mp4"), each(mp4_bytes)),
        "gif": Format(named("gif"), each(gif_bytes)),
        "npy": Format(lambda numbers: [f"{numbers.start:07d}.npy"], _array),
    }


def to_frames(clips: Tensor) -> np.ndarray:
    """Clips ``(N, C, T, H, W)`` in [0, 1] as uint8 ``(N, T, H, W, C)``; values outside are clamped."""
    values = (clips.detach().float().cpu().nan_to_num(0).clamp(0, 1) * 255).round().byte()
    return values.permute(0, 2, 3, 4, 1).numpy()


def mp4_bytes(frames: np.ndarray, rate: float) -> bytes:
    """Frames as an MP4 file of H.264, which every browser plays.

    Height and width must be even there: an odd one gets its last line or column twice.

    Args:
        frames: uint8 ``(T, H, W, C)``, C 1 or 3.
        rate: frames a second.
    """
    try:
        import av
    except ImportError:
        raise ModuleNotFoundError(EXTRA) from None
    odd = [(0, size % 2) for size in frames.shape[1:3]]
    frames = np.pad(frames, [(0, 0), *odd, (0, 0)], mode="edge").repeat(3 // frames.shape[3], axis=3)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=as_fraction(rate))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12"}
        stream.thread_count = 1  # the bytes are the same on every machine
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def gif_bytes(frames: np.ndarray, rate: float) -> bytes:
    """Frames as a GIF that is repeated for ever.

    A GIF counts time in hundredths of a second; most programs show two of them at least.

    Args:
        frames: uint8 ``(T, H, W, C)``, C 1 or 3.
        rate: frames a second.
    """
    from PIL import Image

    ends = [round(100 * (number + 1) / rate) for number in range(len(frames))]
    durations = [10 * max(2, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    pictures = [Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame) for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return buffer.getvalue()


def as_fraction(rate: float) -> Fraction:
    """A rate as video files note it.

    >>> as_fraction(29.97002997)
    Fraction(30000, 1001)
    """
    return max(Fraction(rate).limit_denominator(LARGEST), Fraction(1, LARGEST))


def _array(batches: Iterator[Tensor]) -> Iterator[bytes]:
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([to_frames(batch) for batch in batches]))
    yield buffer.getvalue()
