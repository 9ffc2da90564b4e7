"""Files that are written whole or not at all, read within bounds and locked, whatever was planted there."""

from __future__ import annotations

import errno
import os
import resource
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vqfast.files import open_file, read_file, remove_leftovers, take_lock, write_file


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_write_file_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    for data in (b"one", b"", b"three"):
        write_file(path, data)
        assert files(tmp_path) == {"a/b": data}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A full disk, nearly: Python ignores SIGXFSZ, so that a longer write fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_what_stood_there(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"before")
    for name in ("a", "b"):
        with files_of_at_most(4096), pytest.raises(OSError, match="large"):
            write_file(tmp_path / name, bytes(100_000))
    assert files(tmp_path) == {"a": b"before"}


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
@pytest.mark.parametrize(("owner", "function"), [(os, "fsync"), (Path, "replace")])
def test_a_failed_write_leaves_what_stood_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, function: str, error: BaseException
) -> None:
    write_file(tmp_path / "a", b"before")

    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(owner, function, fail)
    with pytest.raises(type(error)):
        write_file(tmp_path / "a", b"after")
    assert files(tmp_path) == {"a": b"before"}


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"before")
    (tmp_path / "folder").mkdir()
    for target in ("file/below", "file/far/below", "folder"):
        with pytest.raises(OSError, match="Errno"):
            write_file(tmp_path / target, b"after")
    assert files(tmp_path) == {"file": b"before"}


# links and FIFOs that somebody planted


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside the folder ``shared``, which others can write to."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "victim").write_bytes(b"precious")
    return tmp_path / "victim"


def test_a_file_is_written_in_place_of_a_link(tmp_path: Path, victim: Path) -> None:
    path = tmp_path / "shared" / "a"
    path.symlink_to(victim)
    write_file(path, b"new")
    assert victim.read_bytes() == b"precious" and not path.is_symlink() and path.read_bytes() == b"new"


def test_a_temporary_name_that_is_taken_is_no_way_in(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    monkeypatch.setattr(Path, "replace", lambda beside, target: names.append(beside.name))
    for _ in range(50):
        write_file(tmp_path / "shared" / "a", b"new")
    assert len(set(names)) == 50
    monkeypatch.setattr(secrets, "token_hex", lambda size: "guessed")  # even so
    (tmp_path / "shared" / ".vqfast-guessed.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "shared" / "a", b"new")
    assert victim.read_bytes() == b"precious"


def test_files_that_killed_processes_left_are_removed(tmp_path: Path) -> None:
    for name in (".vqfast-0123.tmp", ".other.tmp", "a.tmp"):
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path)
    assert sorted(files(tmp_path)) == [".other.tmp", "a.tmp"]
    remove_leftovers(tmp_path / "none")


def test_a_file_gets_the_mode_that_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a", b"")
        take_lock(tmp_path / "b").close()
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [0o640] * 2


@pytest.mark.parametrize("kind", ["link", "dangling link", "FIFO", "folder"])
def test_no_lock_but_a_regular_file(tmp_path: Path, victim: Path, kind: str) -> None:
    path = tmp_path / "shared" / ".lock"
    {
        "link": lambda: path.symlink_to(victim),
        "dangling link": lambda: path.symlink_to(tmp_path / "new"),
        "FIFO": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }[kind]()
    with pytest.raises((ValueError, IsADirectoryError), match=r"is a link; want|no regular file|directory"):
        take_lock(path)
    assert files(tmp_path) == {"victim": b"precious"} | (
        {"shared/.lock": b"precious"} if kind == "link" else {}
    )


def test_a_lock_belongs_to_one_process(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_bytes(b"kept")
    held = take_lock(path)
    assert held is not None and take_lock(path) is None
    held.close()
    again = take_lock(path)
    assert again is not None and path.read_bytes() == b"kept"
    again.close()


def test_a_lock_that_is_removed_meanwhile_excludes_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One opens the file, then its owner removes it and goes, then the lock of the old file is free."""
    fcntl = pytest.importorskip("fcntl")
    path, flock, times = tmp_path / ".lock", fcntl.flock, []

    def late(*args: Any) -> None:
        if not times:
            path.unlink()
        times.append(flock(*args))

    monkeypatch.setattr(fcntl, "flock", late)
    held = take_lock(path)
    assert len(times) == 2 and os.path.samestat(os.fstat(held.fileno()), path.stat())
    held.close()


# reading


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_file(path, 5) == read_file(tmp_path / "link", 9) == b"12345"
    with pytest.raises(ValueError, match="a has 5 bytes; want 4 at most"):
        read_file(path, 4)
    with path.open("wb") as file:
        file.truncate(10**12)  # nothing is allocated
    with pytest.raises(ValueError, match="has 1000000000000 bytes"):
        read_file(path, 10**6)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "FIFO")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for path in (tmp_path / "FIFO", tmp_path / "zeros", tmp_path):
        with pytest.raises(ValueError, match="is no regular file"):
            open_file(path)
        with pytest.raises(ValueError, match="is no regular file"):
            read_file(path, 10)
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "none")
