"""What stands in a folder is used, or left out and named: links, suffixes, splits, stray and bad images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.command import MODEL, refused, run
from tests.data.sources import folder, pixels, same, saved
from vqfast.data import Unreadable, load_images
from vqfast.pipeline import Run, stage_codes
from vqfast.saving.storage import read_json


def left_out(root: Path, **options: object) -> dict[str, list[str]]:
    return {
        why: those["first"] for why, those in load_images(str(root), **options).findings["left_out"].items()
    }


def test_linked_folders_and_files(tmp_path: Path) -> None:
    arrays = {f"{c}__{i}_png": pixels(4, 4) for c in "ab" for i in range(3)}
    straight = load_images(folder(tmp_path / "straight", **arrays))
    for name in ("linked", "linked/a", "elsewhere"):
        (tmp_path / name).mkdir()
    for i in range(3):
        (tmp_path / "elsewhere" / f"{i}").write_bytes((tmp_path / f"straight/a/{i}.png").read_bytes())
        (tmp_path / "linked" / "a" / f"{i}.png").symlink_to(tmp_path / "elsewhere" / f"{i}")
    (tmp_path / "linked" / "b").symlink_to(tmp_path / "straight" / "b")
    linked = load_images(str(tmp_path / "linked"))
    assert linked.labels.tolist() == [0, 0, 0, 1, 1, 1] and linked.findings["classes"] == ["a", "b"]
    assert torch.equal(linked.batch(range(6)), straight.batch(range(6)))
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    assert len(load_images(str(tmp_path / "link"))) == 6


def test_circles_of_links_end(tmp_path: Path) -> None:
    folder(tmp_path, a__b__0_png=pixels(4, 4))
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "self").symlink_to(".")
    assert left_out(tmp_path) == {"links to a folder that they are in": ["a/b/up", "a/self"]}
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    with pytest.raises(Unreadable, match=r"a/loop\.png: cannot read image"):
        load_images(str(tmp_path))


def test_a_link_to_no_class_folder_is_unreadable(tmp_path: Path) -> None:
    folder(tmp_path, train__cat__0_png=pixels(4, 4), train__owl__0_png=pixels(4, 4), val__0_png=pixels(4, 4))
    (tmp_path / "train" / "fish").symlink_to("nowhere")
    with pytest.raises(Unreadable, match=r"train/fish: cannot read image: .*No such file"):
        load_images(str(tmp_path))
    for split in ("", "train"):
        images = load_images(str(tmp_path / split), skip_bad=True)
        assert images.findings["classes"] == ["cat", "owl"] and images.labels.tolist() == [0, 1]
        assert [Path(name).name for name in images.findings["bad"]] == ["fish"]
        assert any("fish/, which can't be read: " in line for line in images.describe())
        again = load_images(str(tmp_path / split), skip_bad=images.findings["bad"])
        assert again.fingerprint == images.fingerprint
    (tmp_path / "val" / "fish").symlink_to("nowhere")  # outside what is read
    (tmp_path / "train" / "fish").unlink()
    assert load_images(str(tmp_path)).labels.tolist() == [0, 1]
    (tmp_path / "train").rename(tmp_path / "away")
    (tmp_path / "train").symlink_to("nowhere")  # so that val isn't trained on instead
    with pytest.raises(Unreadable, match="/train: cannot read image"):
        load_images(str(tmp_path))


def test_nothing_readable_says_why(spoilt: Path) -> None:
    for file in spoilt.rglob("*.png"):
        file.write_bytes(b"junk")
    said = r"has no image in it; want PNG.*; 20 can't be read, the first a/00\.png: cannot identify image"
    with pytest.raises(ValueError, match=said):
        load_images(str(spoilt), skip_bad=True)


def test_the_content_of_a_file_says_whether_it_is_an_image(tmp_path: Path) -> None:
    array = pixels(8, 8, 3)
    names = {"a": "png", "b.jfif": "png", "c.ppm": "ppm", "d.txt": "bmp", "e.PNG": "png", "f.jpg": "webp"}
    for name, kind in names.items():
        Image.fromarray(array).save(
            tmp_path / name, format=kind, **({"lossless": True} if kind == "webp" else {})
        )
    for name, content in (
        ("g.txt", b"hello"),
        ("h", b"BM"),
        ("i.json", b"{}"),
        ("j.eps", b"%!PS-Adobe-3.0\n"),
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".hidden.png").write_bytes(b"")
    images = load_images(str(tmp_path))
    assert same(images, np.stack([array.transpose(2, 0, 1)] * 6))
    assert left_out(tmp_path) == {
        "hidden": [".hidden.png"],
        "of no image format that is read": ["g.txt", "h", "i.json", "j.eps"],
    }
    for name in "ab":
        one = next(tmp_path.glob(f"{name}*"))
        assert same(load_images(str(one)), array.transpose(2, 0, 1)[None])


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "valid", "test"), ("train2017", "val2017")])
@pytest.mark.parametrize("classes", [True, False])
def test_splits(tmp_path: Path, names: tuple[str, ...], classes: bool) -> None:
    kinds = ("cat__", "dog__") if classes else ("",)
    arrays = {f"{n}__{k}{i}_png": pixels(4, 4) for n in names for k in kinds for i in range(2)}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.json").write_text("{}")
    images = load_images(folder(tmp_path, **arrays))
    train = sorted(name for name in arrays if name.startswith(names[0]))
    assert same(images, np.stack([arrays[name] for name in train])[:, None])
    assert images.findings["classes"] == (["cat", "dog"] if classes else None)
    assert (images.labels is not None) == classes
    why = f"outside {names[0]}/, the split that is read"
    assert images.findings["left_out"][why]["files"] == len(arrays) - len(train) + 1
    held = load_images(str(tmp_path / names[1]))
    assert len(held) == len(images) and (held.labels is not None) == classes


def test_class_folders_with_names_like_train_are_no_split(tmp_path: Path) -> None:
    images = load_images(folder(tmp_path, train__0_png=pixels(4, 4), bus__0_png=pixels(4, 4)))
    assert images.findings["classes"] == ["bus", "train"] and images.findings["left_out"] == {}


def test_stray_images(tmp_path: Path) -> None:
    arrays = {f"{c}__{i}_png": pixels(4, 4) for c in "ab" for i in range(2)}
    images = load_images(folder(tmp_path, **arrays, stray_png=pixels(9, 9, 3)))
    assert images.labels.tolist() == [0, 0, 1, 1] and same(images, np.stack([*arrays.values()])[:, None])
    assert left_out(tmp_path) == {"beside the class folders": ["stray.png"]}
    (tmp_path / "stray.png").write_bytes(b"")  # nor does a bad one matter
    assert len(load_images(str(tmp_path))) == 4
    folder(tmp_path, **{f"{i}_png": pixels(4, 4) for i in range(3)}, stray_png=pixels(4, 4))
    assert (
        load_images(str(tmp_path)).labels is None and len(load_images(str(tmp_path))) == 8
    )  # as many as inside
    labels = saved(tmp_path / "y.npy", np.arange(8))
    assert load_images(str(tmp_path), labels=labels).labels.tolist() == list(range(8))
    (tmp_path / "2.png").unlink()
    assert len(load_images(str(tmp_path))) == 4
    labels = saved(tmp_path / "y.npy", np.arange(7))  # of all that there are: no place matters
    assert load_images(str(tmp_path), labels=labels).labels.tolist() == list(range(7))


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """Twenty images in two classes, of which eight can't be read: four by their headers, four beyond."""
    root = tmp_path / "photos"
    folder(root, **{f"{c}__{i:02d}_png": pixels(32, 32) for c in "ab" for i in range(10)})
    for i in range(4):
        (root / "a" / f"0{i}.png").write_bytes(b"junk")
        whole = (root / "b" / f"0{i}.png").read_bytes()
        (root / "b" / f"0{i}.png").write_bytes(whole[: len(whole) // 2])
    return root


def test_every_bad_file_is_named(spoilt: Path) -> None:
    with pytest.raises(Unreadable) as caught:
        load_images(str(spoilt))
    assert sorted(caught.value.bad) == [str(spoilt / "a" / f"0{i}.png") for i in range(4)]
    assert all(name in str(caught.value) for name in caught.value.bad) and "--skip-bad" in str(caught.value)
    for i in range(4):
        (spoilt / "a" / f"0{i}.png").unlink()
    images = load_images(str(spoilt))
    with pytest.raises(Unreadable) as caught:
        images.check()
    assert sorted(caught.value.bad) == [str(spoilt / "b" / f"0{i}.png") for i in range(4)]
    many = Unreadable({f"{i}.png": "no" for i in range(10**5)}, skippable=True)
    assert len(str(many)) < 500 and "and 99995 more" in str(many) and len(many.bad) == 10**5


def test_bad_files_are_left_out(spoilt: Path, tmp_path: Path) -> None:
    good = [
        name
        for name in sorted(p.relative_to(spoilt).as_posix() for p in spoilt.rglob("*.png"))
        if name[3] > "3"
    ]
    images = load_images(str(spoilt), skip_bad=True)
    truth = np.stack([np.asarray(Image.open(spoilt / name))[None] for name in good])
    assert same(images, truth) and images.labels.tolist() == [0] * 6 + [1] * 6
    assert sorted(images.findings["bad"]) == [f"{c}/0{i}.png" for c in "ab" for i in range(4)]
    again = load_images(str(spoilt), skip_bad=images.findings["bad"])
    assert again.fingerprint == images.fingerprint and again.findings == images.findings
    told = "\n".join(images.describe())
    assert "12 images" in told and all(f"left out {name}" in told for name in images.findings["bad"])
    (spoilt / "a" / "09.png").write_bytes(b"junk")  # which wasn't bad before
    with pytest.raises(Unreadable, match=r"a/09\.png: cannot read image") as caught:
        load_images(str(spoilt), skip_bad=images.findings["bad"])
    assert "--skip-bad" not in str(caught.value)  # which wouldn't help
    (spoilt / "a" / "09.png").write_bytes((spoilt / "a" / "08.png").read_bytes())
    labels = saved(tmp_path / "y.npy", np.arange(20))  # of all, the bad ones too
    labelled = load_images(str(spoilt), labels=labels, skip_bad=True)
    assert labelled.labels.tolist() == [*range(4, 10), *range(14, 20)]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    folder(tmp_path, a_png=pixels(4, 4))
    for name in (b"caf\xe9.png", b"new\nline.png", b"\x1b[31m.txt"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(
            b"" if name.endswith(b"txt") else (tmp_path / "a.png").read_bytes()
        )
    images = load_images(str(tmp_path))
    assert len(images) == 3 and len(images.fingerprint) == len(images.stamp) == 32
    assert all(line.isprintable() for line in images.describe())
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(b"")
    with pytest.raises(Unreadable, match=r"caf\\udce9\.png"):
        load_images(str(tmp_path))


def test_commands_say_and_note_what_they_used(
    spoilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (spoilt / "stray.png").write_bytes((spoilt / "a" / "09.png").read_bytes())
    train = f"train --data photos {MODEL} --steps 1 --batch-size 2 --out run"
    refused(train, "photos/a/00.png: cannot read image", capsys)
    assert run(f"{train} --skip-bad") == 0
    said = capsys.readouterr().err
    for line in (
        f"data: 12 images of {spoilt}: grey 32x32, 2 classes (a, b)\n",
        "data: left out 1 beside the class folders: stray.png\n",
        *(f"data: left out {c}/0{i}.png, which can't be read: " for c in "ab" for i in range(4)),
    ):
        assert line in said
    noted = read_json(tmp_path / "run" / "run.json")["stages"]["data"]
    assert noted["used"] == 12 and len(noted["bad"]) == 8 and noted["classes"] == ["a", "b"]
    assert noted["left_out"] == {"beside the class folders": {"files": 1, "first": ["stray.png"]}}
    assert run("encode --run run") == 0  # leaves out the same
    capsys.readouterr()
    assert run("encode --run run --data photos --out codes") == 0  # other data are read as the run's
    assert "12 images encoded" in capsys.readouterr().out


def test_classes_of_other_data_are_those_of_the_run(tmp_path: Path) -> None:
    arrays = {f"{c}__0_png": pixels(4, 4) for c in ("cat", "owl")}
    source = folder(tmp_path / "photos", **arrays)
    assert load_images(source).labels.tolist() == [0, 1]
    images = load_images(source, classes=["ant", "owl", "cat"])
    assert images.labels.tolist() == [2, 1] and images.num_classes == 3
    images = load_images(source, classes=["ant", "cat"])
    assert images.labels is None and images.findings["classes"] is None
    assert "no labels: owl is no class of the run" in images.describe()
    labels = saved(tmp_path / "y.npy", np.array([5, 6]))
    assert load_images(source, labels=labels, classes=["ant"]).labels.tolist() == [5, 6]


def test_commands_number_classes_as_the_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "photos", **{f"{c}__{i}_png": pixels(8, 8) for c in "abc" for i in range(4)})
    folder(tmp_path / "some", **{f"{c}__{i}_png": pixels(8, 8) for c in "bc" for i in range(2)})
    assert run(f"train --data photos {MODEL} --steps 1 --batch-size 2 --out run") == 0
    assert run("encode --run run --data some --out codes") == 0
    assert stage_codes(Run(tmp_path / "codes"), "codes/all").all()[1].tolist() == [1, 1, 2, 2]
