"""Data that changed since training is told by content; what was only touched or copied hasn't changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cli.command import MODEL, refused, run
from tests.data.sources import folder, pixels, png16
from vqfast.data import Images, disk, load_images

TRAIN = f"train {MODEL} --steps 1 --batch-size 2 --out run --data"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixteen images, in files of 8x8 pixels that have all the same size."""
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "photos", **{f"{c}__{i}_bmp": pixels(8, 8) for c in "ab" for i in range(8)})
    np.save("photos.npy", pixels(16, 8, 8))
    return tmp_path


@pytest.mark.parametrize("data", ["photos", "photos.npy"])
def test_other_bytes_of_the_same_size_and_times(
    here: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"{TRAIN} {data}") == 0
    file = here / data if data.endswith("npy") else here / data / "b" / "3.bmp"
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    for command in ("encode --run run", f"{TRAIN} {data}", "reconstruct --run run --out p.png"):
        refused(command, f"{here / data} has changed since the run was trained on it", capsys)
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert run("encode --run run") == 0


@pytest.mark.parametrize("data", ["photos", "photos.npy"])
def test_a_copy_is_the_same_data(here: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(f"{TRAIN} {data}") == 0
    noted = (here / "run" / "run.json").read_bytes()
    (here / data).rename(here / "before")
    (shutil.copy if data.endswith("npy") else shutil.copytree)(here / "before", here / data)
    assert run("reconstruct --run run --out p.png") == 0
    assert run(f"{TRAIN} {data}") == 0
    assert (here / "run" / "run.json").read_bytes() == noted


@pytest.mark.parametrize("change", ["more", "fewer", "renamed", "swapped"])
def test_other_files(here: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{TRAIN} photos") == 0
    first, second = here / "photos" / "a" / "0.bmp", here / "photos" / "b" / "7.bmp"
    if change == "more":
        shutil.copy(first, here / "photos" / "a" / "9.bmp")
    elif change == "fewer":
        first.unlink()
    elif change == "renamed":
        second.rename(second.with_name("8.bmp"))
    else:
        first.rename("kept")
        second.rename(first)
        Path("kept").rename(second)
    refused("encode --run run", "photos has changed since the run was trained on it", capsys)


@pytest.mark.parametrize("option", ["", " --skip-bad"])
@pytest.mark.parametrize("junk", ["a/0.bmp", "a/9.bmp"])  # one that was trained on, or a new one
def test_files_that_turned_unreadable(
    here: Path, junk: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"{TRAIN} photos{option}") == 0
    (here / "photos" / junk).write_bytes(b"junk")
    said = f"{here / 'photos'} has changed since the run was trained on it: {here / 'photos' / junk}: cannot"
    for command in ("encode --run run", f"{TRAIN} photos{option}"):
        refused(command, said, capsys)
        run(command)
        assert "skip-bad" not in capsys.readouterr().err


def test_untouched_files_are_not_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(f"{TRAIN} photos") == 0

    def fails(*_: object) -> bytes:
        raise AssertionError("the bytes were read")

    monkeypatch.setattr(disk, "contents_digest", fails)
    assert run("encode --run run") == 0
    with pytest.raises(AssertionError, match="were read"):
        _ = load_images("photos").fingerprint


def test_a_stamp_is_of_times_and_a_fingerprint_of_bytes(here: Path) -> None:
    def of(images: Images) -> tuple[str, str]:
        return images.stamp, images.fingerprint

    before = of(load_images("photos"))
    assert of(load_images("photos")) == before
    os.utime("photos/a/0.bmp")
    stamp, fingerprint = of(load_images("photos"))
    assert stamp != before[0] and fingerprint == before[1]


def test_the_depth_of_a_run_holds_for_other_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, brightest in (("deep", 4095), ("dark", 600), ("bright", 5000)):
        (here / name).mkdir()
        for i in range(8):
            image = np.full((8, 8, 1), brightest - 1 - i, np.uint16)
            image[i] = brightest
            (here / name / f"{i}.png").write_bytes(png16(image))
    assert run(f"{TRAIN} deep") == 0
    assert run("encode --run run --data dark --out dark-codes") == 0
    said = capsys.readouterr().err
    assert "deep: grey 8x8, 12 bits\n" in said and "dark: grey 8x8, 12 bits\n" in said
    refused("encode --run run --data bright --out new", "5000; want integers of 12 bits", capsys)
    assert run("encode --run run --data bright --depth 13 --out new2") == 0
    assert run("sample --run run --out s --num 1") == 2  # there is no prior
