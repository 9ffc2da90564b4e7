from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vqfast.cli import main
from vqfast.pipeline import Ranks, joined, shards

SMALL = "--hidden-channels 8 --num-embeddings 8 --embedding-dim 4 --val 0.25 --lr 1e-3"
KINDS = {  # batches of 5, which two processes can't share evenly
    "average": f"{SMALL} --decay 0.9 --steps 6 --batch-size 5",
    "gradient": f"{SMALL} --steps 6 --batch-size 5",
    "ruseckas": f"{SMALL} --model ruseckas --num-downsamplings 2 --steps 6 --batch-size 5",
    "options": f"{SMALL} --steps 6 --batch-size 5 --optimizer adamw --weight-decay 0.1 --clip 0.5 --ema 0.8 "
    "--schedule onecycle --workers 1",
}
ENCODE = ["encode --run trained", "encode --run trained --data ../other.npy --out other"]
PRIOR = "--channels 8 --num-layers 2 --head-channels 8 --steps 6 --batch-size 7 --lr 1e-3"
SAMPLE = [
    "sample --run whole --out samples --num 21 --seed 5",
    "sample --run whole --out completed --complete held-out --draws 2 --keep left-half --format npy",
    "decode --run whole --codes samples/samples --out pictures --format png",
]
MEASURE = ["likelihood --run whole --out bits.npy", "reconstruct --run whole --out pairs.png"]
SHARD = 8  # items, so that both processes have some shards

# Every process of torchrun runs this: several commands, to save time, in one and the same group.
SCRIPT = """
import sys
from pathlib import Path
import torch.distributed
from vqfast.cli import main
from vqfast.pipeline import shards

leave = torch.distributed.destroy_process_group
torch.distributed.destroy_process_group = lambda: None
shards.SHARD = int(sys.argv[1])
for command in Path(sys.argv[2]).read_text().splitlines():
    assert main(command.split()) == 0, command
leave()
"""


def torchrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and in ``one`` and ``two`` what the same commands make of it in one process and in two.

    The later commands begin with what one process trained: the runs ``trained`` and ``whole``.
    """
    top = tmp_path_factory.mktemp("ranks")
    rng = np.random.default_rng(0)
    for name in ("images", "other"):
        np.save(top / f"{name}.npy", rng.integers(0, 256, (40, 16, 16), dtype=np.uint8))
    np.save(top / "labels.npy", np.arange(40) % 3)
    data = "--data ../images.npy --labels ../labels.npy"
    train = [f"train {data} --out {name} {options}" for name, options in KINDS.items()]
    prior = [f"train-prior --run trained {PRIOR}"]
    one, two = top / "one", top / "two"
    one.mkdir()
    two.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun does
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(one)
        patch.setattr(shards, "SHARD", SHARD)
        assert [main(command.split()) for command in train] == [0] * 4
        for count in (one, two):
            shutil.copytree(one / "average", count / "trained")
        assert [main(command.split()) for command in ENCODE + prior] == [0] * 3
        for count in (one, two):
            shutil.copytree(one / "trained", count / "whole")
        assert [main(command.split()) for command in SAMPLE + MEASURE] == [0] * 5
    torch.set_num_threads(threads)
    (one / "said").write_text(said.getvalue())

    (top / "commands").write_text("\n".join([*train, *ENCODE, *prior, *SAMPLE, *MEASURE]))
    (top / "script.py").write_text(SCRIPT)
    done = torchrun(two, str(top / "script.py"), str(SHARD), str(top / "commands"))
    assert done.returncode == 0, done.stderr
    (two / "said").write_text(done.stdout)
    assert done.stdout.count("trained average") == 1  # the first process speaks for all
    return top


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f"{kind}/vqvae" for kind in KINDS), "trained/prior"])
def test_training_agrees_with_one_process_on_the_joined_batch(folder: Path, name: str) -> None:
    one, two = (load_file(folder / count / f"{name}.safetensors") for count in ("one", "two"))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-4, atol=1e-4)
    one, two = (json.loads((folder / count / f"{name}.history.json").read_text()) for count in ("one", "two"))
    assert one["step"] == two["step"] == [0, 5]
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shards",
    ["trained/codes/train", "trained/codes/held-out", "other/codes", "samples", "completed", "pictures"],
)
def test_codes_and_samples_are_those_of_one_process(folder: Path, shards: str) -> None:
    one, two = (
        {
            path.relative_to(folder / count): path.read_bytes()
            for path in (folder / count / shards).rglob("*.*")
        }
        for count in ("one", "two")
    )
    assert one == two and len(one) >= 2


@pytest.mark.slow
def test_measures_are_those_of_one_process(folder: Path) -> None:
    one, two = (np.load(folder / count / "bits.npy") for count in ("one", "two"))
    assert one.shape == (10,) and one.min() > 0
    np.testing.assert_array_equal(one, two)
    assert (folder / "one" / "pairs.png").read_bytes() == (folder / "two" / "pairs.png").read_bytes()
    figures = [(folder / count / "said").read_text().splitlines()[-1] for count in ("one", "two")]
    assert figures[0] == figures[1] and "psnr" in figures[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "error"),
    [
        (
            "train --data images.npy --out few --batch-size 1",
            "batch_size is 1; want 2 (the number of processes) or more",
        ),
        (  # only the first process sees that
            "sample --run two/whole --out two/samples --num 21 --shape 4 4 --seed 6",
            "two/samples has samples with other settings: seed was 5, now 6; use another folder",
        ),
    ],
)
def test_bad_input_ends_all_processes_with_one_clear_error(folder: Path, command: str, error: str) -> None:
    before = (folder / "two" / "samples" / "run.json").read_bytes()
    # without the -- torchrun takes our --run and --num for ambiguous options of its own
    done = torchrun(folder, "-m", "--", "vqfast", *command.split())
    assert done.returncode != 0
    said = {line for line in done.stderr.splitlines() if line.startswith("vqfast: error")}
    said -= {line for line in said if "another process stopped" in line}
    assert said == {f"vqfast: error: {error}"}
    assert "vqfast/cli" not in done.stderr  # no traceback but torchrun's own
    assert f"ValueError: {error}" in done.stderr.partition("Root Cause")[2]
    assert (folder / "two" / "samples" / "run.json").read_bytes() == before


INTERRUPTED = """
import signal
import torch.distributed
from safetensors.torch import load_file
from vqfast.cli import main
from vqfast.pipeline import loop

def interrupted(num, batch_size, step, seed):
    if step == 3 and torch.distributed.get_rank() == 1:
        signal.raise_signal(signal.SIGINT)
    return batch_numbers(num, batch_size, step, seed)

leave = torch.distributed.destroy_process_group
torch.distributed.destroy_process_group = lambda: None
model = "--hidden-channels 8 --num-embeddings 8 --embedding-dim 4"
train = f"train --data images.npy {model} --steps 25 --out".split()
assert main([*train, "undisturbed"]) == 0
batch_numbers, loop.batch_numbers, loop.SAVE_SECONDS = loop.batch_numbers, interrupted, 1e9
assert main([*train, "interrupted"]) == 130
state = load_file("interrupted/vqvae.state.safetensors")
assert bytes(state["progress"].tolist()).startswith(b'{"step": 11,')  # the next that is recorded
torch.distributed.barrier()
loop.batch_numbers = batch_numbers
assert main([*train, "interrupted"]) == 0
leave()
"""


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_at_the_same_step(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    (tmp_path / "script.py").write_text(INTERRUPTED)
    done = torchrun(tmp_path, "script.py")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("vqfast: interrupted; the same command goes on from here") == 2
    one, two = (tmp_path / name / "vqvae.safetensors" for name in ("undisturbed", "interrupted"))
    assert one.read_bytes() == two.read_bytes()


def test_alone() -> None:
    with joined("auto" if not torch.cuda.is_available() else "cpu") as ranks:
        assert ranks == Ranks() and ranks.first
        tensor = torch.ones(2)
        ranks.add_up([tensor])
        ranks.barrier()
        assert tensor.tolist() == [1, 1]
    assert not Ranks(1, 2).first


@pytest.mark.parametrize("device", ["gpu", "", "cuda:0", "meta"])
def test_unknown_devices(device: str) -> None:
    with pytest.raises(ValueError, match="want 'auto', 'cpu' or 'cuda'"), joined(device):
        pass


def test_a_missing_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no GPU"), joined("cuda"):
        pass
