"""Opens a set of clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vqfast.checks import check_integer
from vqfast.data import disk
from vqfast.data.video.dataset import Clips
from vqfast.data.video.folder import VideoFiles


def load_video(
    data: str | Path,
    *,
    frames: int | None = None,
    stride: int = 1,
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    num_actions: int | None = None,
    depth: None = None,
    skip_bad: bool | Mapping[str, str] = False,
    classes: Sequence[str] | None = None,
) -> Clips:
    """Opens a set of clips of videos; they are read when they are needed.

    ``data`` is one video, or a folder that is searched recursively, links followed, in the order of the
    relative names. A video is:

    - A file of FFmpeg's: MP4, WebM, AVI, GIF, Matroska, QuickTime, MPEG and others, of any codec and size.
      Frames are read one by one in the order of their times, whatever time lies between them, turned upright
      where the file says so, as RGB of 8 bits. Pixels count as squares.
    - A folder of images with numbers in their names, such as ``walk/frame_0001.png``, in the order of these
      numbers. Where names differ before the last number too, they make up several videos.
    - A ``.npy`` file of uint8 ``(T, H, W, C)``, C 1, 3 or 4 (alpha, which is dropped), or of several videos
      ``(N, T, H, W, C)``, which is read in place; or a ``.npz`` file with that under clips, videos, video,
      frames, x or arr_0, which is unpacked into memory. Without the axis C they are grey; of four axes the
      first then is N.

    A video is cut into clips from its start on, one behind the other; what is left at its end isn't used.

    **Actions** are integers, 0 or more, one for each frame of a video: the action that led to the frame. They
    stand beside it as ``walk.actions.npy`` or ``walk.actions.csv`` (a number in each line), for the file
    ``walk.mp4`` or the folder ``walk``; or in a ``.npz`` file under actions, ``(N, T)``. Either all videos
    have actions or none.

    If all videos stand in sub-folders, the first ones below the folder that all are in are the classes,
    numbered in sorted order, unless there is just one. A ``.npz`` file may have labels ``(N,)``.

    Video files take the package PyAV: ``pip install 'vqfast[video]'``.

    Args:
        data: see above.
        frames: of a clip; None takes whole videos, which then must be equally long.
        stride: takes every ``stride``-th frame, and its action.
        size: pixels along a side of the squares that frames become: the shorter side is resized to it and the
            central square cut out. Two numbers are height and width of other rectangles. None leaves frames
            as they are; all videos then must be of one size.
        channels: 1 (grey) or 3 (RGB) converts; by default clips are grey only if all videos are.
        num_actions: how many actions there are; by default the largest plus 1.
        depth: None, as for all kinds of data whose files need no such option.
        skip_bad: True leaves out videos that can't be read, which takes reading all of them. A mapping leaves
            out the videos that are its keys, as ``findings["bad"]`` named them before.
        classes: the names of all classes, in the order of their labels. Where others are found, there are no
            labels.

    Raises:
        FileNotFoundError: a path isn't there.
        ModuleNotFoundError: PyAV is missing.
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, there is no video as long as a clip, or actions are missing.
        Unreadable: videos can't be read, are cut off or damaged, or don't fit their actions; it is a
            ValueError.

    ``Clips`` has an example.
    """
    check_integer("frames", frames, optional=True)
    check_integer("stride", stride)
    check_integer("channels", channels, optional=True)
    check_integer("num_actions", num_actions, optional=True)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels is {channels}; want 1 or 3")
    if depth is not None:
        raise ValueError(f"depth is {depth}; want None: frames are read with 8 bits")
    files = VideoFiles(disk.existing_path("data", data), frames, stride, skip_bad, classes)
    return Clips(files, str(data), _height_and_width(size), channels, num_actions)


def _height_and_width(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sizes = [size] if not isinstance(size, Sequence) else list(size)
    for one in sizes:
        check_integer("size", one, 1, 2**16)
    if isinstance(size, str) or not 1 <= len(sizes) <= 2:
        raise ValueError(f"size is {size!r}; want an integer, or height and width")
    return sizes[0], sizes[-1]
