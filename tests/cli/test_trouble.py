"""What goes wrong with good commands: damaged files, another process, no GPU, disk, memory or package."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.command import PRIOR, TRAIN, files, refused, run
from vqfast.cli import written
from vqfast.pipeline import Run, loop

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
        "vqvae.config.json is no config of a vqfast model",
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
@pytest.mark.parametrize("name", ["vqvae", "prior"])
def test_weights_that_are_not_finite(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path(f"whole/{name}.safetensors")
    tensors = load_file(weights)
    tensor = min(tensors)
    tensors[tensor].flatten()[0] = torch.nan
    save_file(tensors, weights)
    commands = ["sample --run whole --out new", "likelihood --run whole --out new.npy"]
    if name == "vqvae":
        commands += ["encode --run whole", "reconstruct --run whole --out new.png"]
        commands.append("decode --run whole --codes drawn/samples --out new")
    for command in commands:
        refused(command, f"{name}.safetensors has nan in {tensor}; want finite numbers", capsys)


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
        refused(f"{command} --device cuda", "device is 'cuda', but torch sees no GPU here", capsys)


@pytest.mark.parametrize("seconds", [-1.0, 15.0])
def test_a_full_disk(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: float
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", seconds)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = files(here)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, hard))  # room for notes, but for no picture or weights
    try:
        for command in (
            f"{TRAIN} new",
            f"train-prior --run coded {PRIOR}",
            "sample --run whole --out s --num 100",
            "reconstruct --run begun --out new.png",
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
    monkeypatch.setitem(sys.modules, "tomli", None)
    monkeypatch.setattr(written, "sys", SimpleNamespace(version_info=(3, 10)))  # whose library reads no TOML
    Path("a.toml").write_text("lr = 0.1")
    refused(f"{TRAIN} new --config a.toml", "tomli is missing: pip install 'vqfast[demo]'", capsys)


def test_a_model_that_does_not_compile(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_compiler(graph: object, inputs: object) -> None:
        raise OSError("no C++ compiler")

    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled(self, backend=no_compiler))
    refused(f"{TRAIN} new --compile", "error: --compile: backend='no_compiler' raised:", capsys)
