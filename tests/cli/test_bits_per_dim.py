"""A VQ-VAE with a likelihood, from the command line."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.command import PRIOR, TRAIN, refused, run
from vqfast.models import VQVAE
from vqfast.pipeline import CodeGrids, bits_per_code, load_model, reopen_parts
from vqfast.pipeline.priors import load_priors
from vqfast.pipeline.run import Run


def test_likelihood_says_the_bits_of_a_value(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (f"{TRAIN} m --num-mixtures 2", "encode --run m", f"train-prior --run m {PRIOR}"):
        assert run(command) == 0
    capsys.readouterr()
    assert run("likelihood --run m --out bits.npy") == 0
    told = capsys.readouterr().out
    found = re.fullmatch(
        r"4 grids of codes: (\S+) bits per code; (\S+) bits per dimension, (\S+) with a uniform prior; "
        r"those of each grid in bits\.npy\n",
        told,
    )
    assert found, told

    vqvae, prior = load_model("m", "vqvae"), load_model("m", "prior")
    assert isinstance(vqvae, VQVAE)
    held_out = reopen_parts(Run("m", lock=False))["held-out"]
    x, labels = held_out.batch(range(4)), torch.from_numpy(held_out.labels)
    with torch.no_grad():
        nats = vqvae(x, return_nats=True)[1]  # 8x8 values
        code_bits = prior.bits_per_code(vqvae.encode(x), labels) * 4  # 2x2 codes
    for value, bits in zip(found.groups()[1:], (code_bits, 4 * math.log2(8)), strict=True):
        assert float(value) == pytest.approx(((nats / math.log(2) + bits) / 64).mean().item(), abs=6e-4)

    assert run("likelihood --run m --codes m/codes/train --out bits.npy --overwrite") == 0
    assert "per dimension" not in capsys.readouterr().out  # there are no images
    np.save("between.npy", np.full((10, 8, 8), 0.3, np.float32))
    np.save("ten.npy", np.zeros(10, np.int64))
    refused(
        "likelihood --run m --data between.npy --labels ten.npy --out bits.npy --overwrite",
        "the data has values between the multiples of 1/255; want 8 bits a value",
        capsys,
    )


def test_a_second_stage_has_the_likelihood_of_its_first_model(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = "--hidden-channels 8 --num-downsamplings 1 --num-embeddings 8 --steps 2 --batch-size 8"
    for command in (
        f"{TRAIN} m --num-mixtures 2",
        f"train-second-stage --run m --out n {second}",
        "encode --run n",
        f"train-prior --run n {PRIOR} --no-labels",
    ):
        assert run(command) == 0
    capsys.readouterr()
    assert run("likelihood --run n --out bits.npy") == 0
    found = re.search(r"; (\S+) bits per dimension, (\S+) with a uniform prior", capsys.readouterr().out)
    assert found

    first, held_out = load_model("m", "vqvae"), reopen_parts(Run("m", lock=False))["held-out"]
    assert isinstance(first, VQVAE)
    x = held_out.batch(range(4))
    levels = load_model("n", "vqvae").encode_levels(x)
    assert [indices.shape[1:] for indices in levels] == [(1, 1), (2, 2)]
    priors = load_priors(Run("n", lock=False), load_model("n", "vqvae"))
    bits = bits_per_code(priors, CodeGrids(4, "", lambda numbers: (levels, None)))
    code_bits = bits @ torch.tensor([1.0, 4.0], dtype=torch.float64)
    for value, given in zip(found.groups(), (code_bits, None), strict=True):
        expected = first.bits_per_dim(x, code_bits=given).mean().item()
        assert float(value) == pytest.approx(expected, abs=6e-4)
