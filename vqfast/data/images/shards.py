"""Images in tar files, as WebDataset keeps them: an image and its class under one key, many to a shard."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vqfast.data import disk
from vqfast.data.images.folder import is_image_name
from vqfast.data.images.packed import PackedPixels
from vqfast.files import open_file

CLASS, BESIDE = ".cls", {".json", ".txt"}  # suffixes of members that belong to an image
MAX_CLASS_BYTES = 32


class Member(NamedTuple):
    """Where the bytes of a file in a tar file are."""

    tar: str
    offset: int
    size: int


class Part(io.RawIOBase):
    """Some bytes of a file as a file of their own.

    Args:
        path: the file.
        offset, size: which bytes.
    """

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._place = open_file(path), offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._offset + self._place)
        data = self._file.read(max(0, min(len(buffer), self._size - self._place)))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class ShardPixels(PackedPixels):
    """The images in tar files; see ``Pixels`` and ``FolderPixels``.

    An image is called ``shard.tar/its name``. Where each has an integer in the member with its key and the
    suffix ``.cls``, these are the labels. Members that are no regular files, as links, are left out.

    Args:
        root: the folder of the tar files, or one.
        size, depth, skip_bad: see ``FolderPixels``.
        labelled: whether labels come from elsewhere.

    Raises:
        Unreadable: images can't be read.
        ValueError: a tar file is damaged; there is no image, or the images have unequal sizes; or only some
            images have classes, or a class is no integer.
    """

    def __init__(
        self,
        root: Path,
        size: int | None,
        depth: int | None,
        skip_bad: bool | Mapping[str, str],
        labelled: bool,
    ) -> None:
        self.members: dict[str, Member] = {}
        self.class_members: dict[str, Member] = {}
        super().__init__(root, size, depth, skip_bad, labelled=True)
        if labelled:
            return
        keys = [_key(name) for name in self.names]
        missing = [name for name, key in zip(self.names, keys, strict=True) if key not in self.class_members]
        if missing and len(missing) < len(keys):
            raise ValueError(
                f"{root} has {disk.quantity(len(missing), 'image')} without a class, the first "
                f"{disk.printable(missing[0])}; want {CLASS} members for all images or for none"
            )
        if not missing:
            self.labels = np.array([self._class(key) for key in keys])

    def stamp(self) -> bytes:
        return disk.stamp_of(self.tars)

    def _found(self, root: Path) -> disk.Found:
        tars = [root] if root.is_file() else shard_files(root)
        self.root, self.tars = tars[0].parent, {tar.name: tar.stat() for tar in tars}
        left_out: disk.LeftOut = {}
        for tar in tars:
            self._index(tar, left_out)
        return dict(sorted((name, self.tars[m.tar]) for name, m in self.members.items())), left_out, {}

    def _index(self, path: Path, left_out: disk.LeftOut) -> None:
        """Notes where the members of a tar file are; reads its headers alone."""
        whole = path.stat().st_size
        with (
            open_file(path) as file,
            disk.decoding(path, "tar file"),
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            for info in tar:
                if info.isdir():
                    continue
                name, suffix = f"{path.name}/{info.name}", Path(info.name).suffix.lower()
                if not info.isreg() or info.sparse is not None:
                    left_out.setdefault("links or devices", []).append(name)
                    continue
                if info.offset_data + info.size > whole:
                    raise ValueError(f"{info.name} ends behind the file's end")
                member = Member(path.name, info.offset_data, info.size)
                if suffix == CLASS:
                    self.class_members[_key(name)] = member
                elif suffix not in BESIDE:
                    if name in self.members:
                        raise ValueError(f"it has {info.name} twice")
                    self.members[name] = member
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # where tarfile stops without a word
                raise ValueError("it is cut off, or damaged")

    def _source(self, name: str) -> io.BufferedReader:
        return self._open(self.members[name])

    def _open(self, member: Member) -> io.BufferedReader:
        return io.BufferedReader(Part(self.root / member.tar, member.offset, member.size))

    def _class(self, key: str) -> int:
        with self._open(self.class_members[key]) as part:
            text = part.read(MAX_CLASS_BYTES)
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"{disk.printable(key + CLASS)} has {text!r}; want an integer") from None


def _key(name: str) -> str:
    """What the members of one image share: the name up to the first dot of its last part."""
    tar, _, member = name.partition(".tar/")
    folder, slash, last = member.rpartition("/")
    return f"{tar}.tar/{folder}{slash}{last.split('.')[0]}"


def shard_files(path: Path) -> Sequence[Path]:
    """The tar files of a data set: ``path``, or those in the folder unless it has images or folders."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".tar" else []
    if not path.is_dir():
        return []
    beside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    tars = [entry for entry in beside if entry.suffix.lower() == ".tar" and entry.is_file()]
    return [] if any(is_image_name(entry.name) or entry.is_dir() for entry in beside) else tars
