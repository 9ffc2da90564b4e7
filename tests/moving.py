"""Videos made up for tests: a square on a torus that each action moves, so that the next frame is known."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

STEPS = {0: (0, 1), 1: (1, 0), 2: (0, -1)}  # actions: right, down, left; in squares of the grid
CELL = 4


def drawn(
    place: tuple[int, int], size: tuple[int, int], colour: tuple[int, ...] = (230, 60, 40)
) -> np.ndarray:
    """A frame uint8 ``(H, W, 3)`` with the square at a place of the grid of cells."""
    frame = np.full((*size, 3), 40, np.uint8)
    top, left = CELL * place[0], CELL * place[1]
    frame[top : top + CELL, left : left + CELL] = colour
    return frame


def walk(frames: int, seed: int, size: tuple[int, int] = (16, 24)) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 ``(T, H, W, 3)``, and the action that led to each, int64 ``(T,)``."""
    rng = np.random.default_rng(seed)
    grid = size[0] // CELL, size[1] // CELL
    actions = rng.integers(0, len(STEPS), frames)
    place = int(rng.integers(grid[0])), int(rng.integers(grid[1]))
    shown = []
    for number, action in enumerate(actions.tolist()):
        if number:
            down, right = STEPS[action]
            place = (place[0] + down) % grid[0], (place[1] + right) % grid[1]
        shown.append(drawn(place, size))
    return np.stack(shown), actions


def write_video(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    *,
    rate: int | Fraction = 25,
    pix_fmt: str = "yuv444p",
    times: list[int] | None = None,
    turned: int = 0,
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
) -> Path:
    """Writes frames ``(T, H, W, 3)`` by PyAV; ``times`` are in milliseconds."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=muxing or {}) as container:
        stream: Any = container.add_stream(codec, rate=1000 if times else rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = pix_fmt, options or {}
        stream.thread_count = 1  # small frames are done before threads have started
        if turned:
            stream.set_display_rotation(turned)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_walks(folder: Path, num: int, frames: int = 24, actions: bool = True) -> None:
    """Writes walks as MP4 files, with their actions beside them."""
    for seed in range(num):
        shown, own = walk(frames, seed)
        write_video(folder / f"{seed}.mp4", shown, options={"crf": "8"})
        if actions:
            np.save(folder / f"{seed}.actions.npy", own)
