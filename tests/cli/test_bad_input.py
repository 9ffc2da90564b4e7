"""Commands that are refused for their arguments or their files: status 2, one line, nothing changed."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import pytest

from tests.cli.command import PRIOR, TRAIN, UNLABELLED, files, refused, run

HUGE = "9" * 25
BAD_TRAIN = {
    "--data nope": "nope'; no such file or folder",
    "--data photos/1.png": "val is 0.1, which leaves one part of 1 image empty; want both",
    "--data truncated.npy": "truncated.npy: cannot read .npy file",
    "--data nan.npy": "nan.npy has nan in image 0; want floats in [0, 1]",
    "--data thesis": "thesis has no image in it; want PNG, JPEG",
    "--data thesis/thesis.tex": "it is no image and, by its name, no NumPy file",
    "--data photos --labels labels.npy": "labels of shape (40,); want (10,)",
    "--data unequal": "images of unequal size: 0.png is 8x8, 9.png is 12x8; --size makes them equal",
    "--data broken": "5.png",
    "--data odd.npy": "spatial is (7, 8); want 2 positive multiples of the stride 4",
    "--labels nope": "nope'; no such file or folder",
    "--labels images.npy": "labels of shape (40, 8, 8); want (40,)",
    "--size 30": "size is 30; want a multiple of 4, the model's stride",
    "--size 0": "size is 0; want an integer in 1..2147483647",
    f"--size {HUGE}": f"size is {HUGE}; want an integer in 1..2147483647",
    "--channels 2": "channels is 2; want 1 or 3",
    "--val 0": "; want a finite number, above 0, below 1",
    "--val 1": "; want a finite number, above 0, below 1",
    "--val nan": "; want a finite number, above 0, below 1",
    "--val 0.001": "leaves one part of 40 images empty",
    "--model vae": "model is 'vae'; want 'paper', ",
    "--model paper-speech-mirrored": "spatial is (8, 8); want 1 positive multiples",
    "--model keras --num-residual-blocks 1": "num_residual_blocks is 1; want None",
    "--revive-below -1": "revive_below is -1.0; want a finite number, 0 or more",
    "--recipe mine": "recipe is 'mine'; want 'keras', 'ruseckas', 'ruseckas-hierarchical', 'paper' or ",
    "--config nope.toml": "nope.toml",
    "--config images.npy": "images.npy is no TOML file: ",
    "--device tpu": "device is 'tpu'; want 'auto', 'cpu' or 'cuda'",
    "--num-embeddings 0": "num_embeddings is 0; want a positive integer",
    "--embedding-dim 0": "embedding_dim is 0; want a positive integer",
    "--embedding-dim -1": "embedding_dim is -1",
    "--hidden-channels 0": "hidden_channels is 0",
    "--beta -1": "beta is -1.0",
    "--beta nan": "beta is nan",
    "--decay 1": "decay is 1.0",
    "--steps 0": "steps is 0; want a positive integer",
    "--steps -1": "steps is -1; want a positive integer",
    "--steps 1.5": "argument --steps: invalid int value: '1.5'",
    "--batch-size 0": "batch_size is 0; want a positive integer",
    f"--batch-size {HUGE}": f"batch_size is {HUGE}; want a positive integer, below 2^63",
    f"--batch-size {2**62}": "out of memory",
    f"--steps {HUGE}": f"steps is {HUGE}; want a positive integer, below 2^63",
    f"--hidden-channels {HUGE}": f"hidden_channels is {HUGE}; want a positive integer, below 2^63",
    f"--hidden-channels {2**62}": "out of memory",
    f"--num-downsamplings {HUGE}": f"num_downsamplings is {HUGE}; want an integer in 1..62",
    "--lr nan": "lr is nan; want a finite number, above 0",
    "--lr 0": "lr is 0.0; want a finite number, above 0",
    "--lr -0.1": "lr is -0.1; want a finite number, above 0",
    "--lr 1e30": "the loss is ",
    "--seed -1": "seed is -1; want an integer in 0..4294967295",
    f"--seed {HUGE}": f"seed is {HUGE}; want an integer in 0..4294967295",
    "--out images.npy": "images.npy is a file; want a run folder",
    "--out images.npy/run": "Not a directory",
    "--out thesis": "thesis holds something else, not a vqfast run; use another folder",
    "--labels labels.npy --out begun --lr 1": "begun has vqvae with other settings: lr was 0.001, now 1.0",
    "--out begun --size 4": "data.size was None, now 4; use another folder",
    "--out begun --data photos": "data.path was ",
    "--labels labels.npy --out begun --decay 0.9": "decay was None, now 0.9; use another folder",
    "--nonsense": "unrecognized arguments: --nonsense",
}
BAD_SAMPLE = {
    "--label 3": "labels is 3; want an integer in 0..2",
    "--label -1": "labels is -1; want an integer in 0..2",
    f"--label {HUGE}": f"labels is {HUGE}; want an integer in 0..2",
    "--run plain --label 0": "labels is 0; want None: the prior has no classes",
    "--temperature -1": "temperature is -1.0; want",
    "--temperature nan": "temperature is nan; want",
    "--top-k 0": "top_k is 0; want",
    "--precision bf16": "precision is 'bf16'; want 'bfloat16'",
    "--top-p 0": "top_p is 0.0; want",
    "--top-p 2": "top_p is 2.0; want",
    "--num 0": "num is 0; want a positive integer",
    f"--num {HUGE}": f"num is {HUGE}; want a positive integer, below 2^63",
    "--shape 0 5": "want a positive integer",
    "--shape 5": "--shape has 1 sizes; want 2",
    "--seed -1": "seed is -1; want",
    f"--seed {HUGE}": f"seed is {HUGE}; want",
    "--method fast": "method is 'fast'; want 'auto', 'native', 'triton', 'torch' or 'reference'",
    "--batch-size 0": "batch_size is 0; want",
    "--device tpu": "want 'auto', 'cpu' or 'cuda'",
    "--run nope": "nope holds no vqfast run: train one first",
    "--run begun": "prior.safetensors is missing: train the prior first",
    "--run coded": "prior.safetensors is missing: train the prior first",
    "--out thesis": "thesis holds something else",
    "--out images.npy": "images.npy is a file",
    "--out drawn --num 8": "num was 7, now 8; use another folder",
    "--format jpg": "format is 'jpg'; want 'grid', 'png', 'npy' or 'codes'",
    "--keep top-half": "--keep and --draws go with --complete",
    "--draws 2": "--keep and --draws go with --complete",
    "--complete held-out --shape 2 2": "--shape and --complete exclude each other",
    "--complete held-out --draws 0": "draws is 0; want an integer in 1..2147483647",
    f"--complete held-out --draws {HUGE}": f"draws is {HUGE}; want an integer in 1..2147483647",
    "--complete held-out --num 33": "num is 33; want 32 at most: 8 of each image",
    "--complete held-out --keep middle": "keep is 'middle'; want ",
    "--complete held-out --keep top": "keep is 'top'; want top-half, or a share such as top-0.3",
    "--complete held-out --keep top-most": "keep is 'top-most'; want top-half, or a share such as top-0.3",
    "--complete held-out --keep top-nan": "keep is 'top-nan'; want",
    "--complete held-out --keep top-0.1": "keep is 'top-0.1', none of 2 x 2 codes; want some of them",
    "--complete held-out --keep left-1": "keep is 'left-1', all of 2 x 2 codes; want some of them",
    "--complete held-out --keep nope.png": "nope.png",
    "--complete nope": "nope",
    "--complete odd.npy --label 0": "the stride 4; crop or resize the images",
    "--complete photos": "the prior has classes and the data has no labels; want --label",
    "--complete photos --label 3": "labels is 3; want an integer in 0..2",
    "--out drawn --num 7 --seed 1": "seed was 0, now 1; use another folder",
}
BAD_PRIOR = {
    "--prior wavenet": "prior is 'wavenet'; want 'gated', 'residual' or 'snail'",
    "--num-residual-blocks 2": "num_residual_blocks",
    "--channels 0": "channels is 0; want a positive integer",
    "--num-layers -1": "num_layers is -1; want a positive integer",
    "--steps 0": "steps is 0",
    "--batch-size 0": "batch_size is 0",
    "--lr nan": "lr is nan",
    "--seed -1": "seed is -1; want an integer in 0..4294967295",
    f"--seed {HUGE}": "want an integer in 0..4294967295",
    "--run nope": "nope holds no vqfast run: train one first",
    "--run begun": "begun holds no codes/held-out: encode first",
    "--run images.npy": "images.npy is a file",
    "--run whole --steps 11": "whole has prior with other settings: steps was 12, now 11; use another folder",
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
    "encode --run begun --size 4 --skip-bad": "--size, --skip-bad goes with --data: the run's own data is",
    "likelihood --run whole --out new.npy --labels labels.npy": "--labels goes with --data",
    "reconstruct --run begun --out new.png --channels 3": "--channels goes with --data",
    "encode --run begun --data odd.npy --out new": "odd.npy doesn't fit the run's model: spatial is (7, 8)",
    "encode --run begun --data colour.npy --channels 3 --out new": "shape (10, 3, 8, 8); want (B, 1, H, W)",
    "encode --run begun --data broken --out new": "5.png",
    "encode --run begun --data photos --out thesis": "thesis holds something else",
    "decode --run nope --codes drawn/samples --out new": "nope holds no vqfast run",
    "decode --run whole --codes nope --out new": "codes is nope; no such file or folder",
    "decode --run whole --codes thesis --out new": "codes is thesis; want a folder such as",
    "decode --run whole --codes thesis/thesis.tex --out new": "which is no whole .npy file",
    "decode --run whole --codes images.npy --out new": "values 0..",
    "decode --run whole --codes nan.npy --out new": "want an array of integers (N, *shape)",
    "decode --run whole --codes drawn --out new": "codes is drawn; want a folder such as",
    "decode --run whole --codes drawn/samples --out new --format codes": "want 'grid', 'png' or 'npy'",
    "decode --run whole --codes drawn/samples --temperature 0.5 --out new": "temperature is 0.5; want 1",
    "decode --run whole --codes drawn/samples --out thesis": "thesis holds something else",
    "likelihood --run begun --out new.npy": "prior.safetensors is missing: train the prior first",
    "likelihood --run whole --out images.npy": "images.npy exists; use --overwrite or another name",
    "likelihood --run whole --out new.npy --label 3": "labels is 3; want an integer in 0..2",
    "likelihood --run whole --out new.npy --codes images.npy --label 0": "indices has values",
    "likelihood --run whole --out new.npy --data photos": "no labels; want labels in 0..2 (--label), since",
    "likelihood --run whole --out new.npy --data photos --codes drawn/samples": "exclude each other",
    "reconstruct --run nope --out new.png": "nope holds no vqfast run",
    "reconstruct --run begun --out images.npy": "images.npy exists; use --overwrite or another name",
    "reconstruct --run begun --out images.npy/new.png": "images.npy",
    "reconstruct --run begun --out thesis --overwrite": "thesis; want a name that ends in .png or .wav",
    "reconstruct --run begun --out new.wav": "new.wav; want a name that ends in .png",
    "picture --run begun --of codebook --out new.jpg": "out is new.jpg; want a name that ends in .png",
    "report --run begun --out new.pdf": "out is new.pdf; want a name that ends in .html or .htm",
    "likelihood --run whole --out new.npz": "out is new.npz; want a name that ends in .npy",
    "reconstruct --run begun --out new.png --num 0": "num is 0; want a positive integer",
    "reconstruct --run begun --out new.png --data colour.npy --channels 3": "want (B, 1, H, W)",
    "reconstruct --run begun --out new.png --data odd.npy": "the stride 4; --size resizes images",
    "demo --out thesis": "thesis holds something else",
    "demo --out begun": "begun has vqvae with other settings",
    "demo --out new --steps-scale 0": "steps_scale is 0.0; want a finite number, above 0, up to 1",
    "demo --out new --steps-scale nan": "steps_scale is nan",
    "demo --out new --seed -1": "seed is -1; want an integer in 0..4294967295",
}
BAD = {
    **{f"{UNLABELLED} new {options}": said for options, said in BAD_TRAIN.items()},
    **{f"sample --run whole --out new {options}": said for options, said in BAD_SAMPLE.items()},
    **{f"train-prior --run coded {PRIOR} {options}": said for options, said in BAD_PRIOR.items()},
    **BAD_OTHERS,
}


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
        if Path("new").exists():  # the frames of an error hold the run, in a circle on Python 3.13
            gc.collect()
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
        (f"{TRAIN} new --beta nan", f"{TRAIN} new"),
        ("encode --run begun --data odd.npy --out new2", "encode --run begun --data wide.npy --out new2"),
        (f"train-prior --run coded {PRIOR} --lr nan", f"train-prior --run coded {PRIOR}"),
        ("sample --run whole --out s --top-k 0", "sample --run whole --out s --num 3"),
    ):
        refused(wrong, "", capsys)
        assert run(right) == (2 if "--steps 0" in right else 0)
