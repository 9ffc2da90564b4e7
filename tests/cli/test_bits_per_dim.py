"""A VQ-VAE with a likelihood, from the command line."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.command import PRIOR, TRAIN, refused, run
from vqfast.pipeline import load_model, reopen_parts
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
