from __future__ import annotations

import fcntl
import os
import pty
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqfast.cli import main
from vqfast.ops import registry
from vqfast.pipeline import train
from vqfast.pipeline.checkpoint import Run, load_model
from vqfast.pipeline.codes import stored
from vqfast.pipeline.images import GAP, MARGIN
from vqfast.pipeline.steps import reopen_images

MODEL = "--hidden-channels 8 --num-embeddings 8 --embedding-dim 4"
UNLABELLED = f"train --data images.npy {MODEL} --steps 12 --batch-size 8 --lr 1e-3 --out"
TRAIN = UNLABELLED.replace("--out", "--labels labels.npy --out")
PRIOR = "--channels 8 --num-layers 2 --head-channels 8 --steps 12 --batch-size 8"
VQFAST = [sys.executable, "-m", "vqfast.cli"]


def run(command: str) -> int:
    return main(command.split())


def make_inputs(folder: Path) -> None:
    """Data, good and bad, for commands run in ``folder``."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.save(folder / "images.npy", pixels)
    np.save(folder / "labels.npy", np.arange(40) % 3)
    np.save(folder / "odd.npy", pixels[:, :7])
    np.save(folder / "wide.npy", np.zeros((10, 8, 12), np.uint8))
    np.save(folder / "colour.npy", np.zeros((10, 8, 8, 3), np.uint8))
    np.save(folder / "nan.npy", np.full((10, 8, 8), np.nan, np.float32))
    (folder / "truncated.npy").write_bytes((folder / "images.npy").read_bytes()[:500])
    for name, last in (("photos", (8, 8)), ("unequal", (8, 12)), ("broken", (8, 8))):
        (folder / name).mkdir()
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, last if i == 9 else (8, 8), np.uint8)).save(
                folder / name / f"{i}.png"
            )
    half = (folder / "broken" / "5.png").read_bytes()[:60]
    (folder / "broken" / "5.png").write_bytes(half)
    (folder / "thesis").mkdir()
    (folder / "thesis" / "thesis.tex").write_text("x")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs and the runs ``begun`` (trained), ``coded`` (and encoded), ``plain`` and ``whole`` (with priors,
    the first without labels), and the samples of ``whole``, ``drawn``."""
    folder = tmp_path_factory.mktemp("cli")
    make_inputs(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(f"{TRAIN} begun") == 0
        shutil.copytree("begun", "coded")
        assert run("encode --run coded") == 0
        for name, options in (("whole", PRIOR), ("plain", f"{PRIOR} --no-labels")):
            shutil.copytree("coded", name)
            assert run(f"train-prior --run {name} {options}") == 0
        assert run("sample --run whole --out drawn --num 7") == 0
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``made``, to work in."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for marker in tmp_path.glob("*/run.json"):  # the runs note where their images are
        marker.write_text(marker.read_text().replace(str(made), str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


# what works


def test_commands_say_what_they_did(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, said in (
        (f"{TRAIN} new", r"trained new/vqvae\.safetensors; curves in new/vqvae\.png"),
        (
            "encode --run new",
            "36 images encoded in new/codes/train\n4 images encoded in new/codes/held-out",
        ),
        ("encode --run new --data wide.npy --out other", "10 images encoded in other/codes/all"),
        (
            f"train-prior --run new {PRIOR}",
            r"trained new/prior\.safetensors; \d\.\d{3} bits a code on held-out images",
        ),
        ("sample --run new --out s --num 7", "7 samples in s/samples; images in s/grid"),
        ("sample --run new --out s --num 7 --format codes", "7 samples in s/samples"),
        ("decode --run new --codes new/codes/train --out d --format png", "36 images in d/png"),
        (
            "sample --run new --out c --complete held-out --draws 3 --num 10 --format codes",
            r"10 samples in c/samples; some beside their originals in c/completions\.png",
        ),
        (
            "likelihood --run new --out bits.npy",
            r"4 grids of codes: \d\.\d{3} bits a code; each one's in bits\.npy",
        ),
        (
            "reconstruct --run new --out p.png",
            r"4 images: mse \S+, psnr \S+, perplexity \S+, codes_in_use \S+; 4 of them in p\.png",
        ),
    ):
        assert run(command) == 0
        out, err = capsys.readouterr()
        assert re.fullmatch(said + "\n", out)
        assert err == ""  # no progress bar but on a terminal
    weights = [Path(run, "vqvae.safetensors").read_bytes() for run in ("new", "begun")]
    assert weights[0] == weights[1]
    for name in ("p.png", "s/grid/0000000.png", "d/png/0000035.png", "c/completions.png"):
        Image.open(name).load()


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
        assert shard.files == ["codes"] and shard["codes"].shape == (3, 2, 2)
    with np.load("twos/samples/00000.npz") as shard:
        assert shard["codes"].shape == (3, 1, 5)


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
        drawn, labels = torch.from_numpy(shard["codes"].astype(np.int64)), shard["labels"]
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
    held_out = reopen_images(Run("whole", lock=False))["held-out"]
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
        codes = shard["codes"]
    assert codes.shape == (5, 2, 2) and (codes[:, 0] == codes[0, 0]).all()


@pytest.mark.usefixtures("here")
def test_likelihood(capsys: pytest.CaptureFixture[str]) -> None:
    codes, labels = stored(Run("whole", lock=False), "codes/train").all()
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
        assert f"{len(bits)} grids of codes: {bits.mean():.3f} bits a code" in capsys.readouterr().out
        if expected is None:
            assert len(bits) == 40  # among them the 36 of the training part
            assert np.abs(bits[:, None] - own.numpy()).min(axis=0).max() < 1e-4
        else:
            np.testing.assert_allclose(bits, expected, rtol=1e-5)


def test_the_same_command_twice_gives_the_same_bytes(here: Path) -> None:
    commands = [
        f"{TRAIN} {{}}",
        "encode --run {}",
        f"train-prior --run {{}} {PRIOR}",
        "sample --run {} --out {}",
    ]
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        for command in commands:
            seeded = "" if command.startswith("encode") else f" --seed {seed}"
            assert run(command.replace("{}", name) + seeded) == 0
    a, b, c = (files(here / name) for name in "abc")
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


# bad input

HUGE = "9" * 25
BAD_TRAIN = {
    "--data nope": "nope'; no such file or folder",
    "--data truncated.npy": "truncated.npy: cannot read .npy file",
    "--data nan.npy": "nan.npy has nan in image 0; want floats in [0, 1]",
    "--data thesis": "thesis has no image in it; want .png",
    "--data thesis/thesis.tex": "being no NumPy file by its name",
    "--data photos --labels labels.npy": "labels of shape (40,); want 10",
    "--data unequal": "images of unequal size: 0.png is 8x8, 9.png is 12x8; --size makes them equal",
    "--data broken": "5.png",
    "--data odd.npy": "spatial is (7, 8); want 2 positive multiples of the stride 4",
    "--labels nope": "nope'; no such file or folder",
    "--labels images.npy": "labels of shape (40, 8, 8); want 40",
    "--size 30": "size is 30; want a multiple of 4, the model's stride",
    "--size 0": "size is 0; want 1 or more",
    "--channels 2": "channels is 2; want 1 or 3",
    "--holdout 0": "; want more than 0",
    "--holdout 1": "; want more than 0",
    "--holdout nan": "; want more than 0",
    "--holdout 0.001": "leaves one part of 40 images empty",
    "--model vae": "name is 'vae'; want one of paper",
    "--model paper-speech": "spatial is (8, 8); want 1 positive multiples",
    "--model keras --num-residual-blocks 1": "num_residual_blocks is 1; want None",
    "--codebook random": "codebook is 'random'; want kmeans or uniform",
    "--device tpu": "device is 'tpu'; want auto, cpu or cuda",
    "--num-embeddings 0": "num_embeddings is 0; want 1 or more",
    "--embedding-dim 0": "embedding_dim is 0; want 1 or more",
    "--embedding-dim -1": "embedding_dim is -1",
    "--hidden-channels 0": "hidden_channels is 0",
    "--beta -1": "beta is -1.0",
    "--beta nan": "beta is nan",
    "--decay 1": "decay is 1.0",
    "--steps 0": "steps is 0; want 1 or more",
    "--steps -1": "steps is -1; want 1 or more",
    "--steps 1.5": "argument --steps: invalid int value: '1.5'",
    "--batch-size 0": "batch_size is 0; want 1 or more",
    f"--batch-size {HUGE}": "too big",
    "--lr nan": "lr is nan; want a positive number",
    "--lr 0": "lr is 0.0; want a positive number",
    "--lr -0.1": "lr is -0.1; want a positive number",
    "--lr 1e30": "the loss is ",
    "--seed -1": "seed is -1; want 0 or more",
    f"--seed {HUGE}": f"seed is {HUGE}; want 0..2^32 - 1",
    "--out images.npy": "images.npy is a file; want a run folder",
    "--out images.npy/run": "Not a directory",
    "--out thesis": "thesis holds something else, not a vqfast run; use another folder",
    "--labels labels.npy --out begun --lr 1": "begun holds another vqvae: lr was 0.001, now 1.0; use",
    "--out begun --size 4": "images.size was None, now 4; use another folder",
    "--out begun --data photos": "images.source was ",
    "--labels labels.npy --out begun --decay 0.9": "decay was None, now 0.9; use another folder",
    "--nonsense": "unrecognized arguments: --nonsense",
}
BAD_SAMPLE = {
    "--label 3": "label is 3; the prior has 3 classes",
    "--label -1": "label is -1; the prior has 3 classes",
    f"--label {HUGE}": "the prior has 3 classes",
    "--run plain --label 0": "label is 0; the prior has no classes",
    "--temperature -1": "temperature is -1.0; want",
    "--temperature nan": "temperature is nan; want",
    "--top-k 0": "top_k is 0; want",
    "--top-p 0": "top_p is 0.0; want",
    "--top-p 2": "top_p is 2.0; want",
    "--num 0": "num is 0; want 1 or more, below 2^63",
    f"--num {HUGE}": f"num is {HUGE}; want 1 or more, below 2^63",
    "--shape 0 5": "want a positive integer",
    "--shape 5": "argument --shape: expected 2 arguments",
    "--seed -1": "seed is -1; want",
    f"--seed {HUGE}": f"seed is {HUGE}; want",
    "--method fast": "method is 'fast'; want one of auto, cached, naive",
    "--batch-size 0": "batch_size is 0; want",
    "--device tpu": "want auto, cpu or cuda",
    "--run nope": "nope holds no vqfast run: train one first",
    "--run begun": "prior.safetensors is missing: train the prior first",
    "--run coded": "prior.safetensors is missing: train the prior first",
    "--out thesis": "thesis holds something else",
    "--out images.npy": "images.npy is a file",
    "--out drawn --num 8": "num was 7, now 8; use another folder",
    "--format jpg": "format is 'jpg'; want one of grid, npy, png, codes",
    "--keep top-half": "--keep and --draws go with --complete",
    "--draws 2": "--keep and --draws go with --complete",
    "--complete held-out --shape 2 2": "--shape and --complete exclude each other",
    "--complete held-out --draws 0": "draws is 0; want 1 or more",
    "--complete held-out --num 33": "num is 33; want 32 at most: 8 of each image",
    "--complete held-out --keep middle": "keep is 'middle'; want ",
    "--complete held-out --keep top": "keep is 'top'; want top-half, or a share such as top-0.3",
    "--complete held-out --keep top-most": "keep is 'top-most'; want top-half, or a share such as top-0.3",
    "--complete held-out --keep top-nan": "keep is 'top-nan'; want",
    "--complete held-out --keep top-0.1": "keep is 'top-0.1', none of 2 x 2 codes; want some of them",
    "--complete held-out --keep left-1": "keep is 'left-1', all of 2 x 2 codes; want some of them",
    "--complete held-out --keep nope.png": "nope.png",
    "--complete nope": "nope",
    "--complete odd.npy --label 0": "spatial is (7, 8)",
    "--complete photos": "label is None; want one: the prior has classes, the images have no labels",
    "--complete photos --label 3": "label is 3; the prior has 3 classes",
    "--out drawn --num 7 --seed 1": "seed was 0, now 1; use another folder",
}
BAD_PRIOR = {
    "--prior wavenet": "prior is 'wavenet'; want gated or residual",
    "--num-residual-blocks 2": "num_residual_blocks",
    "--channels 0": "channels is 0; want a positive integer",
    "--num-layers -1": "num_layers is -1; want a positive integer",
    "--steps 0": "steps is 0",
    "--batch-size 0": "batch_size is 0",
    "--lr nan": "lr is nan",
    "--seed -1": "seed is -1; want 0..2^32 - 1",
    f"--seed {HUGE}": "want 0..2^32 - 1",
    "--run nope": "nope holds no vqfast run: train one first",
    "--run begun": "begun holds no codes/held-out: encode first",
    "--run images.npy": "images.npy is a file",
    "--run whole --steps 13": "whole holds another prior: steps was 12, now 13; use another folder",
    "--run whole --no-labels": "num_classes was 3, now None; use another folder",
}
BAD_OTHERS = {
    "": "the following arguments are required: command",
    "fly": "invalid choice: 'fly'",
    "encode": "the following arguments are required: --run",
    "encode --run nope": "nope holds no vqfast run: train one first",
    "encode --run thesis": "thesis holds something else",
    "encode --run begun --data images.npy": "--data and --out go together",
    "encode --run begun --out new": "--data and --out go together",
    "encode --run begun --data odd.npy --out new": "spatial is (7, 8)",
    "encode --run begun --data colour.npy --out new": "x has shape (10, 3, 8, 8); want (B, 1, H, W)",
    "encode --run begun --data broken --out new": "5.png",
    "encode --run begun --data photos --out thesis": "thesis holds something else",
    "decode --run nope --codes drawn/samples --out new": "nope holds no vqfast run",
    "decode --run whole --codes nope --out new": "codes is nope; no such file or folder",
    "decode --run whole --codes thesis --out new": "codes is thesis; want a folder such as",
    "decode --run whole --codes thesis/thesis.tex --out new": "which is no whole .npy file",
    "decode --run whole --codes images.npy --out new": "values 0..",
    "decode --run whole --codes nan.npy --out new": "want an array of integers (N, H, W)",
    "decode --run whole --codes drawn --out new": "codes is drawn; want a folder such as",
    "decode --run whole --codes drawn/samples --out new --format codes": "want one of grid, npy, png",
    "decode --run whole --codes drawn/samples --out thesis": "thesis holds something else",
    "likelihood --run begun --out new.npy": "prior.safetensors is missing: train the prior first",
    "likelihood --run whole --out images.npy": "images.npy exists; say --overwrite or choose another name",
    "likelihood --run whole --out new.npy --label 3": "label is 3; the prior has 3 classes",
    "likelihood --run whole --out new.npy --codes images.npy": "indices has values",
    "likelihood --run whole --out new.npy --data photos": "labels are missing; this prior has 3 classes",
    "likelihood --run whole --out new.npy --data photos --codes drawn/samples": "exclude each other",
    "reconstruct --run nope --out new.png": "nope holds no vqfast run",
    "reconstruct --run begun --out images.npy": "images.npy exists; say --overwrite or choose another name",
    "reconstruct --run begun --out images.npy/new.png": "images.npy",
    "reconstruct --run begun --out thesis --overwrite": "Is a directory",
    "reconstruct --run begun --out new.png --num 0": "num is 0; want 1 or more",
    "reconstruct --run begun --out new.png --data colour.npy": "want (B, 1, H, W)",
    "reconstruct --run begun --out new.png --data odd.npy": "spatial is (7, 8)",
    "demo --out thesis": "thesis holds something else",
    "demo --out begun": "begun holds another vqvae",
    "demo --out new --steps-scale 0": "steps-scale is 0.0; want a number above 0, up to 1",
    "demo --out new --steps-scale nan": "steps-scale is nan",
    "demo --out new --seed -1": "seed is -1; want 0 or more",
}
BAD = {
    **{f"{UNLABELLED} new {options}": said for options, said in BAD_TRAIN.items()},
    **{f"sample --run whole --out new {options}": said for options, said in BAD_SAMPLE.items()},
    **{f"train-prior --run coded {PRIOR} {options}": said for options, said in BAD_PRIOR.items()},
    **BAD_OTHERS,
}


def refused(command: str, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Checks that a command ends with status 2 and one line that says what is ``wanted``."""
    capsys.readouterr()
    try:
        status = run(command)
    except SystemExit as left:  # argparse's way
        status = left.code
    out, err = capsys.readouterr()
    assert status == 2 and out == ""
    assert err.startswith("vqfast") and " error: " in err and err.count("\n") == 1 and err.endswith("\n")
    assert wanted in err


@pytest.mark.parametrize(
    "command", BAD, ids=lambda command: command.split(" --out new ")[-1][-60:] or "nothing"
)
def test_bad_input(
    made: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    before = files(made)
    try:
        refused(command, BAD[command], capsys)
        now = files(made)
        assert Path("new/run.json").is_file() or not Path("new").exists()
    finally:
        shutil.rmtree("new", ignore_errors=True)
    # nothing came of it but, at most, a note of the settings, which others replace
    assert now.keys() - before.keys() <= {"new/run.json"}
    assert {name for name in before if now.get(name) != before[name]} <= {"coded/run.json"}


@pytest.mark.usefixtures("here")
def test_the_right_command_follows_a_wrong_one(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, right in (
        (f"{TRAIN} new --data odd.npy", f"{TRAIN} new --steps 0"),
        (f"{TRAIN} new --codebook random", f"{TRAIN} new"),
        ("encode --run begun --data colour.npy --out new2", "encode --run begun --data wide.npy --out new2"),
        (f"train-prior --run coded {PRIOR} --lr nan", f"train-prior --run coded {PRIOR}"),
        ("sample --run whole --out s --top-k 0", "sample --run whole --out s --num 3"),
    ):
        refused(wrong, "", capsys)
        assert run(right) == (2 if "--steps 0" in right else 0)


DAMAGE = {  # file, what becomes of it, the command that needs it, what it says
    "truncated VQ-VAE": ("whole/vqvae.safetensors", 999, "encode --run whole", "no whole safetensors file"),
    "empty VQ-VAE": ("whole/vqvae.safetensors", 0, f"{TRAIN} whole", "no whole safetensors file"),
    "truncated prior": (
        "whole/prior.safetensors",
        -1,
        "sample --run whole --out new",
        "prior.safetensors is no whole safetensors file",
    ),
    "truncated state": (
        "begun/vqvae.state.safetensors",
        999,
        f"{TRAIN} begun",
        "vqvae.state.safetensors is no whole safetensors file",
    ),
    "broken config": (
        "whole/vqvae.config.json",
        30,
        "encode --run whole",
        "vqvae.config.json is no JSON file",
    ),
    "foreign config": (
        "whole/vqvae.config.json",
        b'{"name": "x"}',
        "encode --run whole",
        "vqvae.config.json is no config of a model of ours",
    ),
    "broken run.json": ("whole/run.json", 100, "sample --run whole --out new", "run.json is no JSON file"),
    "foreign run.json": ("whole/run.json", b'{"name": "x"}', f"{TRAIN} whole", "run.json is no vqfast run's"),
    "truncated codes": (
        "coded/codes/train/00000.npz",
        -30,
        f"train-prior --run coded {PRIOR}",
        "00000.npz is no whole shard",
    ),
    "truncated samples": (
        "drawn/samples/00000.npz",
        99,
        "decode --run whole --codes drawn/samples --out new",
        "00000.npz is no whole shard",
    ),
    "truncated images": ("images.npy", 500, "encode --run begun", "images.npy: cannot read .npy file"),
    "changed labels": (
        "labels.npy",
        None,
        "encode --run begun",
        "has changed since the run was trained on it",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files(here: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, becomes, command, said = DAMAGE[damage]
    if "state" in name:
        Path("begun/vqvae.safetensors").rename(name)
    if becomes is None:
        np.save(name, np.zeros(40, int))
    else:
        Path(name).write_bytes(becomes if isinstance(becomes, bytes) else Path(name).read_bytes()[:becomes])
    before = files(here)
    refused(command, said, capsys)
    now = files(here)
    assert now.keys() - before.keys() <= {"new/run.json"} and before.items() <= now.items()


@pytest.mark.usefixtures("here")
def test_one_process_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    working = Run("whole")
    for command in (
        f"{TRAIN} whole",
        "encode --run whole",
        f"train-prior --run whole {PRIOR}",
        "sample --run begun --out whole",
        "demo --out whole",
    ):
        expected = (
            "prior.safetensors is missing"
            if "begun" in command
            else "whole is in use by another vqfast process"
        )
        refused(command, expected, capsys)
    assert run("sample --run whole --out new --num 2") == 0  # which only reads it
    del working
    assert run("encode --run whole") == 0


@pytest.mark.usefixtures("here")
def test_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in (f"{TRAIN} new", "encode --run begun", "sample --run whole --out new", "demo --out new"):
        refused(f"{command} --device cuda", "device is cuda, but torch sees no GPU here", capsys)


@pytest.mark.parametrize("seconds", [-1.0, 15.0])
def test_a_full_disk(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: float
) -> None:
    monkeypatch.setattr(train, "SAVE_SECONDS", seconds)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = files(here)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, hard))  # room for notes, but for no picture or weights
    try:
        for command in (
            f"{TRAIN} new",
            f"train-prior --run coded {PRIOR}",
            "sample --run whole --out s --num 100",
            "reconstruct --run begun --out images.npy --overwrite",
        ):
            refused(command, "File too large", capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    now = files(here)
    assert {name for name in before if now.get(name) != before[name]} <= {"coded/run.json"}
    assert not list(here.rglob("*.tmp"))
    assert run(f"{TRAIN} new") == 0
    assert now["begun/vqvae.safetensors"] == (here / "new" / "vqvae.safetensors").read_bytes()


def test_too_little_memory(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(f"sample --run whole --out new --num 2 --shape {10**6} {10**6}", "out of memory", capsys)
    refused(f"{TRAIN} new --num-embeddings {10**13}", "out of memory", capsys)


def test_a_missing_package(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused("reconstruct --run begun --out new.png", "PIL is missing: pip install 'vqfast[demo]'", capsys)


# info, interruptions, terminals


def test_info(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("VQFAST_BACKEND", raising=False)
    assert run("info") == 0
    lines = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    found = {tuple(line[:3]): line[3] for line in lines if line[0] in ("cpu", "cuda")}
    probe = torch.empty(0)
    for op in registry.TABLE:
        for backend in registry.BACKENDS:
            assert found["cpu", op, backend] == (registry.refusal(op, backend, probe) or "runs")
        assert found["cpu", op, "reference"] == "runs"
    monkeypatch.setenv("VQFAST_BACKEND", "reference")
    assert run("info") == 0
    assert "VQFAST_BACKEND: reference" in capsys.readouterr().out


def test_an_unknown_backend(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VQFAST_BACKEND", "nonsense")
    for command in (f"{TRAIN} new", "encode --run begun"):
        refused(command, "VQFAST_BACKEND is 'nonsense'; want one of cuda, native, triton, reference", capsys)
    assert run("info") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interruption_that_becomes_another_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:  # as torch does where it looks into a tensor
            raise ValueError("could not determine the shape") from None

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # main changes it
    monkeypatch.setattr("vqfast.cli._info", command)
    assert run("info") == 130
    assert capsys.readouterr().err == INTERRUPTED
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("a bug"), SystemExit(3)])
def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def command() -> None:
        raise error

    monkeypatch.setattr("vqfast.cli._info", command)
    with pytest.raises(type(error)):
        run("info")


INTERRUPTED = "vqfast: interrupted; the same command goes on from here\n"


def started(*command: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONUNBUFFERED", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*VQFAST, *command], cwd=cwd, env=environment, text=True, **pipes)


def test_ctrl_c(here: Path) -> None:
    with started(*TRAIN.split(), "new", "--steps", "1000000", cwd=here) as process:
        while not (here / "new" / "run.json").exists():
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    # a shell calls both 130; which one depends on what Python was at (an exec of a string remembers)
    assert process.returncode in (130, -signal.SIGINT)
    assert (out, err) == ("", INTERRUPTED)
    assert not list(here.rglob("*.tmp"))


def test_status_and_streams_of_a_process(here: Path) -> None:
    with started(*TRAIN.split(), "new", "--lr", "0", cwd=here) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err == "vqfast: error: lr is 0.0; want a positive number\n"
    with started("info", cwd=here) as process:
        process.stdout.close()  # as `head` does when it has seen enough
        assert process.wait(60) == 1 and process.stderr.read() == ""


def test_progress_bars_show_on_a_terminal(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 200, 0, 0))
    shown: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 4096):
                shown.append(data)
        except OSError:  # how a terminal that hangs up ends on Linux
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        for command in (
            f"{TRAIN} new",
            "encode --run new",
            f"train-prior --run new {PRIOR}",
            "sample --run new --out s --num 2",
        ):
            assert run(command) == 0
    reader.join(10)
    os.close(ours)
    text = b"".join(shown).decode()
    for label in (
        "VQ-VAE: 100%",
        "encode train: 100%",
        "encode held-out: 100%",
        "prior: 100%",
        "sample: 100%",
    ):
        assert label in text
    assert "loss=" in text and "bits_per_code=" in text
    assert "%" not in capsys.readouterr().out
