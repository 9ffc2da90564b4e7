"""The commands on a model with several levels of codes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.command import PRIOR, TRAIN, refused, run, without_data


@pytest.fixture
def levels(here: Path) -> Path:
    """A run whose model has two levels, 2x2 and 4x4 codes."""
    assert run(f"{TRAIN} levels --model vqvae2 --num-downsamplings 1") == 0
    return here


@pytest.mark.usefixtures("levels")
def test_one_command_for_all_levels(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    prior = f"{PRIOR} --condition-channels 4 --condition-blocks 1"
    page = r"\nsee levels/report\.html"
    line = r"trained levels/prior{}\.safetensors; \d\.\d{{3}} bits per code on held-out data"
    for command, said in (
        (
            "encode --run levels",
            "36 images encoded in levels/codes/train\n4 images encoded in levels/codes/held-out",
        ),
        (f"train-prior --run levels --level 0 {prior}", line.format("") + page),
        (f"train-prior --run levels {prior}", f"{line.format('')}\n{line.format('-1')}{page}"),
        ("sample --run levels --out s --num 3", "3 samples in s/samples; decoded in s/grid"),
        ("decode --run levels --codes s/samples --out d --format png", "3 images in d/png"),
        (
            "sample --run levels --out c --complete held-out --draws 2 --keep left-half",
            r"8 samples in c/samples; decoded in c/grid; some beside .* in c/completions\.png",
        ),
        (
            "likelihood --run levels --out bits.npy",
            r"4 grids of codes: (\S+) bits per code \((\S+), (\S+) by level\); those of each grid in .*",
        ),
        (
            "reconstruct --run levels --out p.png",
            "4 images: mse .*perplexity .*codes_in_use .*perplexity-1 .*codes_in_use-1 .* in p.png",
        ),
        ("reconstruct --run levels --levels 1 --out top.png", "4 images: mse .* in top.png"),
    ):
        assert run(command) == 0
        out, err = capsys.readouterr()
        assert re.fullmatch(said + "\n", out) and without_data(err) == ""
        if command.startswith("likelihood"):
            whole, top, bottom = map(float, re.fullmatch(said + "\n", out).groups())
            assert whole == pytest.approx((4 * top + 16 * bottom) / 20, abs=2e-3)
            assert np.load("bits.npy").mean(0) == pytest.approx([top, bottom], abs=1e-3)
    Image.open("c/completions.png").load()


@pytest.mark.usefixtures("levels")
def test_another_shape_of_all_levels(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("encode --run levels") == 0
    assert run(f"train-prior --run levels {PRIOR} --condition-channels 4 --no-labels") == 0
    assert run("sample --run levels --out s --num 2 --shape 1 3") == 0
    with np.load("s/samples/00000.npz") as shard:
        assert shard["indices"].shape == (2, 1, 3) and shard["indices-1"].shape == (2, 2, 6)
    refused("sample --run levels --out t --shape 3", "--shape has 1 sizes; want 2", capsys)
    refused(f"train-prior --run levels {PRIOR} --level 2", "level is 2; want an integer in 0..1", capsys)


@pytest.mark.usefixtures("levels")
def test_a_level_without_a_prior_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("encode --run levels") == 0
    refused(
        "sample --run levels --out s", "level 0 has no prior, levels/prior.safetensors is missing", capsys
    )
    assert run(f"train-prior --run levels --level 0 {PRIOR} --no-labels") == 0
    wanted = "level 1 has no prior, levels/prior-1.safetensors is missing: train the prior first"
    for command in ("sample --run levels --out s", "likelihood --run levels --out b.npy"):
        refused(command, wanted, capsys)


@pytest.mark.usefixtures("here")
def test_rejection(capsys: pytest.CaptureFixture[str]) -> None:
    refused("sample --run whole --out s --reject 0.3", "train the classifier first", capsys)
    assert run("train-classifier --run whole --steps 2 --batch-size 8") == 0
    assert "trained whole/classifier.safetensors" in capsys.readouterr().out
    assert run("sample --run whole --out s --num 5 --reject 0.05 --format codes") == 0
    assert re.fullmatch(r"5 samples in s/samples, \d+ rejected\n", capsys.readouterr().out)
    assert run("decode --run whole --codes s/samples --out d --format png") == 0
    refused("sample --run whole --out t --reject 1.5", "reject is 1.5; want", capsys)
    refused("sample --run plain --out t --reject 0.5", "train the classifier first", capsys)


@pytest.mark.usefixtures("here")
def test_codes_of_codes(capsys: pytest.CaptureFixture[str]) -> None:
    second = "--hidden-channels 8 --num-downsamplings 1 --num-embeddings 8 --steps 2 --batch-size 8"
    assert run(f"train-second-stage --run begun --out second {second}") == 0
    assert "trained second/vqvae.safetensors; see second/report.html" in capsys.readouterr().out
    assert run("encode --run second") == 0
    with np.load("second/codes/train/00000.npz") as shard:
        assert shard["indices"].shape == (36, 1, 1) and shard["indices-1"].shape == (36, 2, 2)
    assert run("reconstruct --run second --levels 1 --out p.png") == 0
    deep = second.replace("downsamplings 1", "downsamplings 2")
    refused(f"train-second-stage --run begun --out deep {deep}", "multiples of the stride 16", capsys)
