"""Files on disk: which there are, whether they have changed, and which can't be read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

import numpy as np

from vqfast.files import open_file

NAMES_SHOWN = 5  # files of a kind that a message names; it counts the others
CHUNK = 1 << 20

LeftOut = dict[str, list[str]]  # reason -> names of files
# files by their names; files that are left out; names that can't be looked at, each with the reason
Found = tuple[dict[str, os.stat_result], LeftOut, dict[str, str]]


class Unreadable(ValueError):
    """Files that can't be read.

    Args:
        bad: their names, each with the reason.
        skippable: whether the caller can leave them out by ``skip_bad``, not having done so yet.
        item: what such a file should hold.
    """

    def __init__(self, bad: Mapping[str, str], skippable: bool, item: str = "image") -> None:
        self.bad, self.skippable = dict(bad), skippable
        shown = islice(bad.items(), NAMES_SHOWN)
        lines = [f"{printable(name)}: cannot read {item}: {why}" for name, why in shown]
        more = [f"and {len(bad) - NAMES_SHOWN} more"] if len(bad) > NAMES_SHOWN else []
        hint = ["--skip-bad leaves such files out"] if skippable else []
        super().__init__("; ".join([*lines, *more, *hint]))


def printable(name: str) -> str:
    """A file's name in characters that print, whatever its bytes are."""
    return name if name.isprintable() else ascii(name)


def first_names(names: Sequence[str]) -> str:
    """The first of some names, in characters that print."""
    return ", ".join([*map(printable, names[:NAMES_SHOWN]), *(["..."] if len(names) > NAMES_SHOWN else [])])


def quantity(number: int, noun: str) -> str:
    """``"1 image"``, ``"2 images"``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def describe(left_out: LeftOut) -> list[str]:
    """What was left out, in words: a line for each reason."""
    return [
        f"left out {len(names)} {why}: {first_names(sorted(names))}"
        for why, names in sorted(left_out.items())
    ]


def existing_path(argument: str, path: str | os.PathLike[str]) -> Path:
    """``path``, if a folder, a regular file or a link to one is there.

    Raises:
        TypeError: ``path`` is no path.
        FileNotFoundError: nothing is there.
        ValueError: a pipe, a device or a socket is there, which may never end.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{argument} is a {type(path).__name__}; want a path")
    found = Path(path)
    try:
        mode = found.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{argument} is {os.fspath(path)!r}; no such file or folder") from None
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise ValueError(f"{argument} is {os.fspath(path)!r}, a device or pipe; want a file or folder")
    return found


def files_under(root: Path) -> Found:
    """The regular files under a folder, links followed, by their sorted relative names.

    Returns:
        The files; the files that are left out; and names that can't be looked at, each with the reason.
    """
    files: dict[str, os.stat_result] = {}
    left_out: LeftOut = {}
    bad: dict[str, str] = {}
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset([_identity(root.stat())]))]
    while pending:
        prefix, above = pending.pop()
        try:
            with os.scandir(root / prefix) as opened:
                entries = list(opened)
        except OSError as error:
            bad[prefix or "./"] = str(error)
            continue
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith("."):
                left_out.setdefault("hidden", []).append(name)
                continue
            try:
                status = entry.stat()
            except OSError as error:  # a broken link, or a circle of them
                bad[name] = str(error)
                continue
            identity = _identity(status)
            if stat.S_ISDIR(status.st_mode):
                if identity in above:
                    left_out.setdefault("links to a folder that they are in", []).append(name)
                else:
                    pending.append((f"{name}/", above | {identity}))
            elif stat.S_ISREG(status.st_mode):
                files[name] = status
            else:
                left_out.setdefault("devices or pipes", []).append(name)
    return dict(sorted(files.items())), left_out, bad


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def stamp_of(files: Mapping[str, os.stat_result]) -> bytes:
    """Identifies files by names, sizes and the times of their last change.

    Equal stamps mean equal contents: any write to a file, or another file in its place, sets its change time
    (ctime), which no program can set back. (A file system that keeps no such time, or a clock that was turned
    back to the nanosecond, could break that.) Unequal stamps mean nothing: a copy has times of its own.
    """
    numbers = ((s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in files.values())
    digest = hashlib.sha256(os.fsencode("\0".join(files)))
    digest.update(np.fromiter(chain.from_iterable(numbers), np.int64).tobytes())
    return digest.digest()


def contents_digest(root: Path, names: Sequence[str]) -> bytes:
    """Identifies files by names, sizes and all their bytes.

    Raises:
        OSError: a file can't be read.
    """
    digest = hashlib.sha256()
    for name in names:
        with open_file(root / name) as file:
            digest.update(os.fsencode(name) + b"\0%d\n" % os.fstat(file.fileno()).st_size)
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.digest()


@contextmanager
def decoding(path: Path, kind: str) -> Iterator[None]:
    """Turns any error inside into a one-line ValueError: decoders raise nearly anything on bad bytes."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path}: cannot read {kind}: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """The message of an error, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
