"""Files in folders where other users may write: written whole, read within bounds, locked.

Another user may have put a link or a FIFO at a name that is written or locked, so links there are never
followed. A name that is read may be a link, since people link their data, but it must lead to a regular file:
a FIFO would block for ever, and a device may never end.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def write_file(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: a write that fails or is killed leaves the old file.

    A process that is killed meanwhile leaves a hidden file beside it; see ``remove_leftovers``.

    Raises:
        OSError: the disk is full or read-only; no hidden file is left.
    """
    file = HiddenFile(path.parent)
    try:
        file.opened.write(data)
        file.place(path)
    finally:
        file.remove()


class HiddenFile:
    """A new file with a hidden name in a folder, to write to until it is ``place``d.

    A process that is killed meanwhile leaves it; see ``remove_leftovers``.

    Raises:
        OSError: the disk is full or read-only.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f".vqfast-{secrets.token_hex(8)}.tmp"
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE, 0o666)
        self.opened = cast(BinaryIO, os.fdopen(descriptor, "w+b"))

    def place(self, path: Path) -> None:
        """Gives the file, which is whole by now, its name in the same folder."""
        self.opened.flush()
        os.fsync(self.opened.fileno())
        self.opened.close()
        self._path.replace(path)

    def remove(self) -> None:
        """Closes the file, and removes it unless it was placed."""
        try:
            self.opened.close()  # which writes what is left, and fails where the disk is full
        finally:
            self._path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes the hidden files of killed processes from a folder in which no process works any more."""
    for leftover in folder.glob(".vqfast-*.tmp"):
        with suppress(OSError):
            leftover.unlink()


def check_folder(path: Path) -> None:
    """Raises ValueError where a folder is a link that another user made: files would land elsewhere."""
    if path.is_symlink() and path.lstat().st_uid != os.geteuid():
        raise ValueError(f"{path} is a link of another user's; want a folder")


def open_file(path: Path) -> BinaryIO:
    """Opens a regular file, or a link to one, for reading.

    Raises:
        OSError: the file isn't there or can't be read.
        ValueError: the path leads to something else.
    """
    descriptor = os.open(path, os.O_RDONLY | (_SAFE & ~getattr(os, "O_NOFOLLOW", 0)))
    return _regular(path, descriptor, "rb")


def read_file(path: Path, max_bytes: int) -> bytes:
    """All bytes of a regular file.

    Raises:
        OSError: the file isn't there or can't be read.
        ValueError: the file is larger than ``max_bytes``, or the path leads to something else.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"{path} has {size} bytes; want {max_bytes} at most")
        return file.read(size)


def take_lock(path: Path) -> BinaryIO | None:
    """Takes a lock, which the system frees when the file is closed or the process dies.

    Returns:
        The open file, or None if another process has the lock.

    Raises:
        OSError: this system has no locks, or the file can't be made.
        ValueError: the path is a link or no regular file.
    """
    try:
        import fcntl
    except ImportError:
        raise OSError("locks of files need a POSIX system") from None
    while True:
        if path.is_symlink():
            raise ValueError(f"{path} is a link; want a regular file")
        file = _regular(path, os.open(path, os.O_RDWR | os.O_CREAT | _SAFE, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.lstat()):
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        file.close()  # the last owner has removed the file, so its lock excludes nobody


def _regular(path: Path, descriptor: int, mode: str) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is no regular file")
    return cast(BinaryIO, os.fdopen(descriptor, mode))
