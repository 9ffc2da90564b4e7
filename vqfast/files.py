"""Files in folders that others may write to: written beside and renamed, read within bounds, locked.

A name that is written or locked may have been planted there as a link or a FIFO: it is never followed. A name
that is read may be a link, since people link their data, but it must lead to a regular file: a FIFO would
wait for ever and a device may never end.
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
    """Writes ``path`` whole or not at all: a killed or failed write leaves what stood there before.

    A process that is killed meanwhile leaves a hidden file beside it; see ``remove_leftovers``.

    Raises:
        OSError: the disk is full or read-only; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".vqfast-{secrets.token_hex(8)}.tmp")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o666), "wb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:  # Ctrl-C too
            beside.unlink(missing_ok=True)
            raise


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left of ``write_file`` in a folder in which none works any more."""
    for left in folder.glob(".vqfast-*.tmp"):
        with suppress(OSError):
            left.unlink()


def check_folder(path: Path) -> None:
    """Raises ValueError where a folder is a link that another user made: our files would land elsewhere."""
    if path.is_symlink() and path.lstat().st_uid != os.geteuid():
        raise ValueError(f"{path} is a link of another user's; want a folder")


def open_file(path: Path) -> BinaryIO:
    """Opens a regular file, or a link to one, for reading.

    Raises:
        OSError: it isn't there or can't be read.
        ValueError: it's something else.
    """
    descriptor = os.open(path, os.O_RDONLY | (_SAFE & ~getattr(os, "O_NOFOLLOW", 0)))
    return _regular(path, descriptor, "rb")


def read_file(path: Path, most: int) -> bytes:
    """All bytes of a regular file, of ``most`` bytes at most.

    Raises: see ``open_file``; ValueError also: it's larger.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"{path} has {size} bytes; want {most} at most")
        return file.read(size)


def take_lock(path: Path) -> BinaryIO | None:
    """Takes a lock, which the system frees when the file is closed or its process dies.

    Returns:
        The open file; ``None`` if another process has the lock.

    Raises:
        OSError: there are no locks on this system, or the file can't be made.
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
        file.close()  # who had it before has removed the file: its lock excludes nobody


def _regular(path: Path, descriptor: int, mode: str) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is no regular file")
    return cast(BinaryIO, os.fdopen(descriptor, mode))
