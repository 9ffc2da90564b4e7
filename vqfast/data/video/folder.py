"""Videos under a folder: which are used, which are left out and why, their classes, and their clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os.path import commonpath
from pathlib import Path, PurePosixPath

import numpy as np

from vqfast.data import disk
from vqfast.data.images.folder import SPLITS
from vqfast.data.video import actions as actions_module
from vqfast.data.video import arrays, frame_files, video_file
from vqfast.data.video.actions import checked_actions, read_actions

Video = video_file.VideoFile | frame_files.FrameFiles | arrays.ArrayVideo


class VideoFiles:
    """Videos under a folder, or one file, cut into clips; see ``Files``, whose items are the clips.

    Args:
        root: the folder or the file.
        frames: of a clip; None takes whole videos, which then must be equally long.
        stride: a clip has every ``stride``-th frame of a part of a video.
        skip_bad: whether to leave out files that can't be read, which takes reading all of them; or the names
            of the bad files that were found before, each with the reason.
        classes: the names of the classes, in the order of their labels; None takes the folders found. Where
            others are found, they are in ``no_classes`` and there are no labels.

    Attributes:
        videos: in the order of their names.
        frames: of a clip.
        video_of, first_of: int64 ``(N,)``, the video of each clip and its first frame there.
        actions: int64 ``(N, T)``, or None.
        labels: int64 ``(N,)``, or None.

    Raises:
        Unreadable: files can't be read.
        ValueError: there is no video as long as a clip, or only some videos have actions.
    """

    def __init__(
        self,
        root: Path,
        frames: int | None,
        stride: int,
        skip_bad: bool | Mapping[str, str],
        classes: Sequence[str] | None = None,
    ) -> None:
        self.skippable = skip_bad is False
        self.left_out: disk.LeftOut = {}
        failed: dict[str, str] = {}
        if root.is_file():
            self.root, found = root.parent, {root.name: root.stat()}
            beside = actions_beside(root.name)
        else:
            self.root = root
            found, self.left_out, failed = disk.files_under(root)
            beside = [f"../{name}" for name in actions_beside(root.absolute().name)]
        found |= {name: (self.root / name).stat() for name in beside if (self.root / name).is_file()}
        self.bad = {} if isinstance(skip_bad, bool) else dict(skip_bad)
        failed = {name: why for name, why in failed.items() if name not in self.bad}
        self.videos: list[Video] = []
        self._names: list[str] = []  # of each video
        self._files: list[list[str]] = []  # of each video
        self._actions: list[np.ndarray | None] = []  # of each frame of each video
        given: list[np.ndarray | None] = []  # labels that arrays bring
        for name, files in self._found_videos(found, single=root.is_file()).items():
            if name in self.bad:
                continue
            try:
                opened = self._opened(files, whole=skip_bad is True)
                own = [n for n in (beside if name == "." else actions_beside(name)) if n in found]
                actions = self._read_actions(name, opened, own)
            except (MemoryError, ModuleNotFoundError):  # the file isn't to blame
                raise
            except Exception as error:  # a decoder raises nearly anything on bad bytes
                failed[name] = disk.one_line(error)
                continue
            self.videos += opened.videos
            self._names += [name] * len(opened.videos)
            self._files += [[*files, *own]] * len(opened.videos)
            self._actions += actions
            given.append(opened.labels)
        if failed and skip_bad is not True:
            bad = {str(self.root / name): why for name, why in failed.items()}
            raise disk.Unreadable(bad, self.skippable, "video")
        self.bad |= failed
        if not self.videos:
            self._refuse_as_empty(
                root, "no video in it; want mp4, webm, avi or gif files, folders of images "
            )
        self.stat = {name: found[name] for files in self._files for name in files}
        self._cut(root, frames, stride)
        self._label(root, given, classes)

    def __len__(self) -> int:
        return len(self.video_of)

    @property
    def names(self) -> list[str]:
        """The name of the video of each clip: of its file, or of the folder of its images."""
        return [self._names[number] for number in self.video_of]

    @property
    def used(self) -> list[Video]:
        """The videos that have clips."""
        return [self.videos[number] for number in np.unique(self.video_of)]

    def common_size(self) -> tuple[int, int]:
        """The height and width of all videos that have clips.

        Raises:
            ValueError: they aren't equal.
        """
        clipped: list[int] = np.unique(self.video_of)[::-1].tolist()
        sizes: dict[tuple[int, int], str] = {self.videos[n].size: self._names[n] for n in clipped}
        if len(sizes) > 1:
            found = [f"{name} is {wide}x{high}" for (high, wide), name in sizes.items()]
            raise ValueError(f"videos differ in size: {', '.join(found[-2:])}; --size makes them equal")
        return next(iter(sizes))

    def stamp(self) -> bytes:
        return disk.stamp_of(self.stat)

    def contents(self, numbers: np.ndarray) -> bytes:
        videos = np.unique(self.video_of[numbers])
        files = dict.fromkeys(name for video in videos for name in self._files[video])
        places: bytes = np.stack([self.video_of[numbers], self.first_of[numbers]]).tobytes()
        cut = f"{self.frames} {self.stride}".encode()
        return disk.contents_digest(self.root, list(files)) + cut + places

    def read(self, numbers: np.ndarray, finish: Callable[[np.ndarray], np.ndarray]) -> dict[int, np.ndarray]:
        """The frames of clips: ``(T, ...)`` by the number of the clip.

        A video is opened once, however many of its clips are asked for.

        Args:
            finish: is called with each frame, uint8 ``(H, W)`` or ``(H, W, 3)``.

        Raises:
            Unreadable: files can't be read; it names all of them.
        """
        clips: dict[int, np.ndarray] = {}
        bad: dict[str, str] = {}
        for video in np.unique(self.video_of[numbers]).tolist():
            own = [n for n in np.unique(numbers).tolist() if self.video_of[n] == video]
            places = {n: self.first_of[n] + self.stride * np.arange(self.frames) for n in own}
            try:
                wanted = np.unique(np.concatenate(list(places.values())))
                frames = [finish(frame) for frame in self.videos[video].read(wanted.tolist())]
                for n, own_places in places.items():
                    clips[n] = np.stack([frames[i] for i in np.searchsorted(wanted, own_places)])
            except MemoryError:  # the file isn't to blame
                raise
            except Exception as error:  # a decoder raises nearly anything on bad bytes
                bad[str(self.root / self._names[video])] = disk.one_line(error)
        if bad:
            raise disk.Unreadable(bad, self.skippable, "video")
        return clips

    def _found_videos(self, found: Mapping[str, object], single: bool) -> dict[str, list[str]]:
        """The files of each video, in order."""
        videos, images = {}, []
        for name in found:
            suffix = PurePosixPath(name).suffix.lower()
            if name.lower().endswith(actions_module.SUFFIXES):
                continue
            if suffix in frame_files.SUFFIXES and not single:
                images.append(name)
            elif suffix in video_file.SUFFIXES | arrays.SUFFIXES or single:
                videos[name] = [name]
            else:
                self.left_out.setdefault("of no format of video", []).append(name)
        numbered = frame_files.sequences(images)
        rest = sorted(set(images) - {name for names in numbered.values() for name in names})
        if rest:
            self.left_out["images without a number"] = rest
        return dict(sorted({**videos, **numbered}.items()))

    def _opened(self, files: list[str], whole: bool) -> arrays.ArrayFacts:
        first = self.root / files[0]
        if first.suffix.lower() in arrays.SUFFIXES:
            return arrays.open_array(first)
        video: Video
        if first.suffix.lower() in frame_files.SUFFIXES:
            video = frame_files.open_frames([self.root / name for name in files], whole=whole)
        else:
            video = video_file.open_video(first, whole=whole)
        return arrays.ArrayFacts([video], None, None)

    def _read_actions(
        self, name: str, opened: arrays.ArrayFacts, beside: list[str]
    ) -> list[np.ndarray | None]:
        """The actions of each frame of each video of a file; ``beside`` are files with them."""
        if len(beside) > 1:
            raise ValueError(f"it has both {' and '.join(beside)}; want one")
        if beside:
            actions = read_actions(self.root / beside[0])
        elif opened.actions is not None:
            actions = checked_actions(opened.actions, name)
        else:
            return [None] * len(opened.videos)
        frames = sum(video.num for video in opened.videos)
        if len(actions) != frames:
            raise ValueError(f"it has {frames} frames and {len(actions)} actions; want one for each frame")
        return list(actions.reshape(len(opened.videos), -1))

    def _cut(self, root: Path, frames: int | None, stride: int) -> None:
        """Cuts the videos into clips, one behind the other."""
        lengths = np.array([-(-video.num // stride) for video in self.videos])
        if frames is None and lengths.min() != lengths.max():
            raise ValueError(
                f"{root} has videos of {lengths.min()} to {lengths.max()} frames; --frames cuts equal clips"
            )
        self.frames, self.stride = int(lengths[0]) if frames is None else frames, stride
        counts = lengths // self.frames
        short = sorted({self._names[video] for video in np.flatnonzero(counts == 0)})
        if short:
            self.left_out[f"shorter than {disk.quantity(self.frames, 'frame')}"] = short
        if not counts.any():
            self._refuse_as_empty(root, f"no video of {self.frames} frames; want fewer --frames, or videos ")
        self.video_of = np.repeat(np.arange(len(counts)), counts)
        behind = np.concatenate([np.arange(count) for count in counts])
        self.first_of = behind * self.frames * stride
        actions = [self._actions[video] for video in np.unique(self.video_of)]
        some = [own is not None for own in actions]
        if any(some) and not all(some):
            name = self._names[np.unique(self.video_of)[some.index(False)]]
            want = " or ".join(PurePosixPath(own).name for own in actions_beside(name))
            raise ValueError(f"{name} has no actions, as other videos have; want {want} beside it")
        self.actions: np.ndarray | None = None
        if all(some):
            self.actions = np.stack(
                [
                    own[first : first + self.frames * stride : stride]
                    for video, first in zip(self.video_of, self.first_of, strict=True)
                    if (own := self._actions[video]) is not None
                ]
            )

    def _label(self, root: Path, given: list[np.ndarray | None], classes: Sequence[str] | None) -> None:
        """Labels clips by the folders of their videos, or by what an array says."""
        self.labels: np.ndarray | None = None
        self.classes: list[str] | None = None
        self.no_classes: list[str] = []
        if len(given) == 1 and given[0] is not None:
            own = checked_actions(given[0], f"labels of {root}")
            if len(own) != len(self.videos):
                raise ValueError(f"{root} has {len(own)} labels; want {len(self.videos)}, one for each clip")
            self.labels = own[self.video_of]
            return
        found = classes_of([self._names[video] for video in self.video_of])
        if found and set(found) <= SPLITS:
            parts = ", ".join(sorted(set(found)))
            raise ValueError(f"{root} has the folders {parts}; want one of them, and another one as --val")
        if not found or (classes is None and len(set(found)) == 1):
            return
        label_of = {name: label for label, name in enumerate(classes or sorted(set(found)))}
        self.no_classes = sorted(set(found) - label_of.keys())
        if not self.no_classes:
            self.classes, self.labels = list(label_of), np.array([label_of[name] for name in found])

    def _refuse_as_empty(self, root: Path, what: str) -> None:
        bad = [f"{disk.printable(name)}: {why}" for name, why in self.bad.items()]
        also = "".join(f"; {line}" for line in [*disk.describe(self.left_out), *bad][: disk.NAMES_SHOWN])
        raise ValueError(f"{root} has {what}or arrays (N, T, H, W, C){also}")


def actions_beside(name: str) -> list[str]:
    """The names that the file with a video's actions may have.

    >>> actions_beside("run/a.mp4"), actions_beside("run/episode 1")
    (['run/a.actions.npy', 'run/a.actions.csv'], ['run/episode 1.actions.npy', 'run/episode 1.actions.csv'])
    """
    path = PurePosixPath(name)
    known = path.suffix.lower() in video_file.SUFFIXES | arrays.SUFFIXES
    stem = str(path.with_suffix("")) if known else name
    return [stem + suffix for suffix in actions_module.SUFFIXES]


def classes_of(names: Sequence[str]) -> list[str]:
    """The first folder of each video below that which all are in; empty where one stands in that itself.

    >>> classes_of(["data/run/a.mp4", "data/walk/b.mp4"]), classes_of(["run/a.mp4", "b.mp4"])
    (['run', 'walk'], [])
    """
    folders = [PurePosixPath(name).parent.as_posix() for name in names]
    above = PurePosixPath(commonpath(folders))
    below = [PurePosixPath(folder).relative_to(above).parts for folder in folders]
    if all(below):
        return [parts[0] for parts in below]
    return [above.name] * len(names) if above.name and not any(below) else []
