"""Two processes make of several levels what one makes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline.test_ranks import SCRIPT, torchrun
from vqfast.cli import main
from vqfast.pipeline import shards

SHARD = 8
TRAIN = (
    "train --data ../images.npy --labels ../labels.npy --model vqvae2 --num-downsamplings 1 --out begun "
    "--hidden-channels 8 --num-embeddings 8 --embedding-dim 4 --val 0.25 --lr 1e-3 --steps 4 --batch-size 5"
)
PRIOR = "--channels 8 --num-layers 2 --head-channels 8 --condition-channels 8 --condition-blocks 1"
STEPS = "--steps 6 --batch-size 7 --lr 1e-3"
MADE = [f"train-prior --run begun {PRIOR} {STEPS}", f"train-classifier --run begun {STEPS}"]
DRAWN = [
    "sample --run whole --out samples --num 21 --seed 5 --reject 0.1 --format png",
    "sample --run whole --out completed --complete held-out --draws 2 --keep left-half --format codes",
    "likelihood --run whole --out bits.npy",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In ``one`` and ``two`` what the same commands make in one process and in two."""
    top = tmp_path_factory.mktemp("level-ranks")
    np.save(top / "images.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8))
    np.save(top / "labels.npy", np.arange(40) % 3)
    one, two = top / "one", top / "two"
    one.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun does
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(one)
        patch.setattr(shards, "SHARD", SHARD)
        assert [main(command.split()) for command in (TRAIN, "encode --run begun")] == [0, 0]
        shutil.copytree(one, two)
        assert [main(command.split()) for command in MADE] == [0, 0]
        for count in (one, two):
            shutil.copytree(one / "begun", count / "whole")
        assert [main(command.split()) for command in DRAWN] == [0, 0, 0]
    torch.set_num_threads(threads)
    (top / "commands").write_text("\n".join([*MADE, *DRAWN]))
    (top / "script.py").write_text(SCRIPT)
    done = torchrun(two, str(top / "script.py"), str(SHARD), str(top / "commands"))
    assert done.returncode == 0, done.stderr
    return top


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prior", "prior-1", "classifier"])
def test_weights_agree(folder: Path, name: str) -> None:
    one, two = (load_file(folder / count / f"begun/{name}.safetensors") for count in ("one", "two"))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["samples/samples/*.npz", "samples/png/*.png", "completed/samples/*.npz"])
def test_samples_are_those_of_one_process(folder: Path, pattern: str) -> None:
    one, two = (sorted((folder / count).glob(pattern)) for count in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two] and len(one) > 1
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))
    bits = [np.load(folder / count / "bits.npy") for count in ("one", "two")]
    assert bits[0].shape == (10, 2)
    np.testing.assert_allclose(bits[1], bits[0], rtol=1e-6)
