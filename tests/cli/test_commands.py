"""Commands that work."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.command import PRIOR, TRAIN, UNLABELLED, files, refused, run, without_data
from vqfast.data.images.sheet import GAP, MARGIN
from vqfast.pipeline import Run, load_model, reopen_parts, stage_codes


def test_commands_say_what_they_did(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, said in (
        (f"{TRAIN} new", r"trained new/vqvae\.safetensors; see new/report\.html"),
        (
            "encode --run new",
            "36 images encoded in new/codes/train\n4 images encoded in new/codes/held-out",
        ),
        ("encode --run new --data wide.npy --out other", "10 images encoded in other/codes/all"),
        (
            f"train-prior --run new {PRIOR}",
            r"trained new/prior\.safetensors; \d\.\d{3} bits per code on held-out data\nsee new/report\.html",
        ),
        ("sample --run new --out s --num 7", "7 samples in s/samples; decoded in s/grid"),
        ("sample --run new --out s --num 7 --format codes", "7 samples in s/samples"),
        ("decode --run new --codes new/codes/train --out d --format png", "36 images in d/png"),
        (
            "sample --run new --out c --complete held-out --draws 3 --num 10 --format codes",
            r"10 samples in c/samples; some beside their originals in c/completions\.png",
        ),
        (
            "likelihood --run new --out bits.npy",
            r"4 grids of codes: \d\.\d{3} bits per code; those of each grid in bits\.npy",
        ),
        (
            "reconstruct --run new --out p.png",
            r"4 images: mse \S+, psnr \S+, perplexity \S+, codes_in_use \S+; 4 of them in p\.png",
        ),
    ):
        assert run(command) == 0
        out, err = capsys.readouterr()
        assert re.fullmatch(said + "\n", out)
        assert without_data(err) == ""  # no progress bar but on a terminal
    weights = [Path(run, "vqvae.safetensors").read_bytes() for run in ("new", "begun")]
    assert weights[0] == weights[1]
    for name in ("p.png", "s/grid/0000000.png", "d/png/0000035.png", "c/completions.png"):
        Image.open(name).load()


@pytest.mark.usefixtures("here")
def test_other_images_are_read_as_the_runs_were(capsys: pytest.CaptureFixture[str]) -> None:
    """Grey photographs of any size for a run on RGB squares, and coloured ones for a grey run."""
    rgb = UNLABELLED.replace("images.npy", "colour.npy --size 4")
    assert run(f"{rgb} rgb") == 0
    assert run("encode --run rgb --data unequal --out a") == 0
    assert "data: 10 images of unequal: RGB 4x4" in capsys.readouterr().err
    assert stage_codes(Run("a", lock=False), "codes/all").all()[0][0].shape == (10, 1, 1)
    assert run("encode --run rgb --data images.npy --size 8 --out b") == 0
    assert stage_codes(Run("b", lock=False), "codes/all").all()[0][0].shape == (40, 2, 2)
    assert run("reconstruct --run begun --data colour.npy --out c.png") == 0
    assert run("likelihood --run plain --data colour.npy --out bits.npy") == 0
    assert run("likelihood --run plain --data photos/3.png --out bits.npy --overwrite") == 0
    assert "1 grid of codes: " in capsys.readouterr().out


def labels_of(folder: str) -> list[int]:
    with np.load(Path(folder) / "samples" / "00000.npz") as shard:
        return shard["labels"].tolist()


@pytest.mark.usefixtures("here")
def test_labels_of_samples() -> None:
    assert labels_of("drawn") == [0, 1, 2, 0, 1, 2, 0]
    assert run("sample --run whole --out twos --num 3 --label 2 --shape 1 5") == 0
    assert labels_of("twos") == [2, 2, 2]
    assert run("sample --run plain --out none --num 3") == 0
    with np.load("none/samples/00000.npz") as shard:
        assert shard.files == ["indices"] and shard["indices"].shape == (3, 2, 2)
    with np.load("twos/samples/00000.npz") as shard:
        assert shard["indices"].shape == (3, 1, 5)


@pytest.mark.usefixtures("here")
def test_overwrite() -> None:
    Path("p.png").write_bytes(b"before")
    assert run("reconstruct --run begun --out p.png") == 2
    assert Path("p.png").read_bytes() == b"before"
    assert run("reconstruct --run begun --data photos --num 3 --out p.png --overwrite") == 0
    Image.open("p.png").load()


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("top-half", [[1, 1], [0, 0]]),
        ("bottom-0.5", [[0, 0], [1, 1]]),
        ("left-half", [[1, 0], [1, 0]]),
        ("right-0.4", [[0, 1], [0, 1]]),
        ("mask.png", [[0, 1], [1, 0]]),
    ],
)
def test_completions_keep_the_images_codes(here: Path, keep: str, kept: list[list[int]]) -> None:
    Image.fromarray(np.kron([[0, 255], [255, 0]], np.ones((4, 4))).astype(np.uint8)).save("mask.png")
    vqvae, images = load_model(here / "whole", "vqvae"), np.load("images.npy")[:5]
    np.save("five.npy", images)
    codes = vqvae.encode(torch.from_numpy(images[:, None] / np.float32(255)))
    assert run(f"sample --run whole --out c --complete five.npy --keep {keep} --draws 4 --label 1") == 0
    with np.load("c/samples/00000.npz") as shard:
        drawn, labels = torch.from_numpy(shard["indices"].astype(np.int64)), shard["labels"]
    assert drawn.shape == (20, 2, 2) and (labels == 1).all()
    expected = codes.repeat_interleave(4, 0)
    mask = torch.tensor(kept, dtype=torch.bool)
    assert torch.equal(drawn[:, mask], expected[:, mask])
    assert (drawn[:, ~mask] != expected[:, ~mask]).double().mean() > 0.3
    prior = load_model(here / "whole", "prior")
    again = prior.sample(20, (2, 2), labels=1, known=expected.where(mask, -1))
    assert torch.equal(drawn, again)


@pytest.mark.usefixtures("here")
def test_the_picture_of_completions() -> None:
    """A column an image: the original, the kept part of it, and what its completions decode to."""
    command = "sample --run whole --out c --complete held-out --num 11 --draws 3 --format npy"
    assert run(command) == 0
    with np.load("c/samples/00000.npz") as shard:
        samples = shard["labels"].tolist()
    held_out = reopen_parts(Run("whole", lock=False))["held-out"]
    assert samples == held_out.labels.repeat(3)[:11].tolist()
    pixels, originals = np.load("c/npy/0000000.npy"), held_out.batch(range(4)) * 255
    sheet = np.asarray(Image.open("c/completions.png").convert("L"))
    gutter = sheet.shape[1] - (2 * MARGIN + 4 * 64 + 3 * GAP)
    assert sheet.shape[0] == 2 * MARGIN + 4 * 64 + 3 * GAP  # the last image has two completions only
    for column in range(4):
        left = MARGIN + gutter + column * (64 + GAP)
        tops = MARGIN + np.arange(4) * (64 + GAP)
        tiles = [sheet[top : top + 64 : 8, left : left + 64 : 8] for top in tops]
        np.testing.assert_allclose(tiles[0], originals[column, 0], atol=1)
        np.testing.assert_allclose(tiles[1][:4], originals[column, 0, :4], atol=1)
        assert len(np.unique(tiles[1][4:])) == 1
        for draw in range(2):
            np.testing.assert_array_equal(tiles[2 + draw], pixels[3 * column + draw, 0])
    before = Path("c/completions.png").stat().st_mtime_ns
    assert run(command) == 0
    assert Path("c/completions.png").stat().st_mtime_ns == before


@pytest.mark.usefixtures("here")
def test_one_image_is_completed() -> None:
    assert run("sample --run plain --out c --complete photos/3.png --num 5") == 0
    with np.load("c/samples/00000.npz") as shard:
        codes = shard["indices"]
    assert codes.shape == (5, 2, 2) and (codes[:, 0] == codes[0, 0]).all()


@pytest.mark.usefixtures("here")
def test_likelihood(capsys: pytest.CaptureFixture[str]) -> None:
    (codes,), labels = stage_codes(Run("whole", lock=False), "codes/train").all()
    prior = load_model(Path("whole"), "prior")
    np.save("codes.npy", codes.numpy())
    with torch.no_grad():
        own = prior.bits_per_code(codes, labels)
        second = prior.bits_per_code(codes, torch.full((36,), 2))
    for options, expected in (
        ("--codes whole/codes/train", own),
        ("--codes codes.npy --label 2", second),
        ("--data images.npy --labels labels.npy", None),
    ):
        capsys.readouterr()
        assert run(f"likelihood --run whole {options} --out bits.npy --overwrite") == 0
        bits = np.load("bits.npy")
        assert f"{len(bits)} grids of codes: {bits.mean():.3f} bits per code" in capsys.readouterr().out
        if expected is None:
            assert len(bits) == 40  # among them the 36 of the training part
            assert np.abs(bits[:, None] - own.numpy()).min(axis=0).max() < 1e-4
        else:
            np.testing.assert_allclose(bits, expected, rtol=1e-5)


@pytest.mark.slow
def test_the_same_command_twice_gives_the_same_bytes(here: Path) -> None:
    commands = [
        f"{TRAIN} {{}}",
        "encode --run {}",
        f"train-prior --run {{}} {PRIOR}",
        "sample --run {} --out {}",
    ]
    names = ("run-a", "run-b", "run-c")
    for name, seed in zip(names, (5, 5, 6), strict=True):
        for command in commands:
            seeded = "" if command.startswith("encode") else f" --seed {seed}"
            assert run(command.replace("{}", name) + seeded) == 0
    a, b, c = (files(here / name) for name in names)
    for made, name in zip((a, b, c), names, strict=True):
        page = re.sub(rb"<dt>When</dt><dd>[^<]*</dd>", b"", made["report.html"])
        made["report.html"] = page.replace(name.encode(), b"run")  # it says where the run is
    assert a == b and a.keys() == c.keys()
    assert {name for name in a if a[name] == c[name]} == {"vqvae.config.json", "prior.config.json"}


def test_a_finished_run_stays_as_it_is(here: Path) -> None:
    kept = [path for path in here.rglob("*.*") if path.name != ".lock"]
    before = {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in kept}
    for command in (
        f"{TRAIN} whole",
        "encode --run whole",
        f"train-prior --run whole {PRIOR}",
        "sample --run whole --out drawn --num 7",
    ):
        assert run(command) == 0
    assert {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in kept} == before


def test_a_run_goes_on_with_more_epochs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longer = f"{TRAIN} begun".replace("--steps 12", "--epochs 4")
    assert run(longer) == 0  # 36 images in batches of 8
    assert json.loads(Path("begun/run.json").read_text())["stages"]["vqvae"]["steps"] == 18
    assert json.loads(Path("begun/vqvae.history.json").read_text())["step"] == [0, 10, 11, 17]
    refused(f"{longer} --steps 30", "steps and epochs exclude each other; want one of them", capsys)
    refused(
        f"{TRAIN} begun",
        "begun has vqvae with other settings: steps was 18, now 12; use another folder",
        capsys,
    )


def test_a_training_is_measured_while_it_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{TRAIN} new --val-every 5 --patience 9") == 0
    assert run(f"train-prior --run coded {PRIOR} --val-every 5") == 0
    for file, figure in (("new/vqvae", "held_out_psnr"), ("coded/prior", "held_out_bits_per_code")):
        history = json.loads(Path(f"{file}.history.json").read_text())
        assert len(history[figure]) == 4
        with Path(f"{file}.csv").open(newline="") as table:
            lines = list(csv.DictReader(table))
        assert [float(line[figure]) for line in lines] == history[figure]
        assert [int(line["step"]) for line in lines] == history["step"] == [0, 5, 10, 11]
    refused(f"{TRAIN} other --patience 9", "patience goes with val_every", capsys)


def test_tensorboard_is_missing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    refused(f"{TRAIN} new --tensorboard logs", "tensorboard is missing: pip install tensorboard", capsys)
