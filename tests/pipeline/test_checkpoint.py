"""Models on disk: they come back as they were, and damaged or foreign files are refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vqfast.models import VQVAE, HierarchicalVQVAE
from vqfast.pipeline import load_model, save_model
from vqfast.priors import ConditionedPrior, PixelCNN, PixelSNAIL, ResidualPixelCNN, WaveNet

MODELS: dict[str, Callable[[], nn.Module]] = {
    "gradient": lambda: VQVAE(hidden_channels=4, num_embeddings=5, embedding_dim=3),
    "average": lambda: VQVAE(hidden_channels=4, num_embeddings=5, embedding_dim=3, decay=0.9),
    "ruseckas": lambda: VQVAE("ruseckas", hidden_channels=4, num_downsamplings=1, num_embeddings=5),
    "vqvae2": lambda: HierarchicalVQVAE(
        hidden_channels=2, num_residual_blocks=0, num_embeddings=5, embedding_dim=3, decay=0.9
    ),
    "ruseckas-hierarchical": lambda: HierarchicalVQVAE(
        "ruseckas-hierarchical", hidden_channels=4, num_levels=2, image_size=4, num_embeddings=5
    ),
    "gated": lambda: PixelCNN(5, channels=4, num_layers=2, head_channels=4, num_classes=3),
    "residual": lambda: ResidualPixelCNN(5, channels=4, num_residual_blocks=1, num_layers=1),
    "snail": lambda: PixelSNAIL(5, 4, 1, 1, num_heads=2, head_channels=4, num_classes=3, dropout=0.2),
    "wavenet": lambda: WaveNet(5, channels=4, num_layers=2),
    "conditioned": lambda: ConditionedPrior(
        WaveNet(5, channels=4, num_layers=1, condition_channels=3), [6, 7], [4, 2], num_residual_blocks=1
    ),
}


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"r\xff")
    save_model(folder, "m", MODELS["gated"]())
    assert load_model(folder, "m").num_embeddings == 5


def described(model: nn.Module) -> dict[str, Any]:
    """The config of a model and of the models in it."""
    return {n: described(v) if isinstance(v, nn.Module) else v for n, v in model.config.items()}


@pytest.mark.parametrize("kind", MODELS)
def test_models(tmp_path: Path, kind: str) -> None:
    model = MODELS[kind]()
    for buffer in model.buffers():
        buffer.add_(1)
    save_model(tmp_path, "m", model.train())
    found = load_model(tmp_path, "m")
    assert type(found) is type(model) and described(found) == described(model) and not found.training
    assert found.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in found.state_dict().items())
    assert sorted(files(tmp_path)) == ["m.config.json", "m.safetensors"]


@pytest.mark.slow
def test_models_from_vqfast_itself(tmp_path: Path) -> None:
    """``load_model`` takes a string, and nothing of the pipeline is imported before it is asked for."""
    code = """
import sys
import vqfast
assert not any(name.startswith("vqfast.pipeline") for name in sys.modules)
assert "load_model" in vqfast.__all__ and not hasattr(vqfast, "save_model")
print(type(vqfast.load_model(sys.argv[1], "m")).__name__)
"""
    save_model(tmp_path, "m", MODELS["gated"]())
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "PixelCNN\n"


DAMAGE: dict[str, tuple[str, bytes | None, str]] = {
    "no weights": ("m.safetensors", None, r"m\.safetensors is missing: train the m first"),
    "no config": ("m.config.json", None, r"m\.config\.json is missing"),
    "no JSON": ("m.config.json", b'{"class": "VQ', "is no JSON file"),
    "a list": ("m.config.json", b"[]", "no config of a vqfast model"),
    "a string": ("m.config.json", b'"VQVAE"', "no config of a vqfast model"),
    "no class": ("m.config.json", b"{}", "no config of a vqfast model"),
    "another class": ("m.config.json", b'{"class": "Linear"}', "no config of a vqfast model"),
    "no class name": ("m.config.json", b'{"class": []}', "no config of a vqfast model"),
    "an unknown argument": ("m.config.json", b'{"class": "VQVAE", "x": 1}', "no config of a vqfast model"),
    "an argument of another type": ("m.config.json", b'{"class": "VQVAE", "beta": "x"}', "no config of a"),
    "K below 1": ("m.config.json", b'{"class": "VQVAE", "num_embeddings": 0}', "num_embeddings is 0"),
    "10^7 layers": (
        "m.config.json",
        b'{"class": "PixelCNN", "num_layers": 10000000}',
        "larger than the weights",
    ),
    "10^12 layers": (
        "m.config.json",
        b'{"class": "PixelCNN", "num_layers": 1000000000000}',
        "larger than the",
    ),
    "10^7 blocks": (
        "m.config.json",
        b'{"class": "VQVAE", "num_residual_blocks": 10000000}',
        "larger than the",
    ),
    "10^9 halvings": (
        "m.config.json",
        b'{"class": "VQVAE", "num_downsamplings": 1000000000}',
        "want .*1..62",
    ),
    "2^62 channels": (
        "m.config.json",
        b'{"class": "VQVAE", "hidden_channels": %d}' % 2**62,
        "no config of a",
    ),
    "10^400 channels": (
        "m.config.json",
        b'{"class": "VQVAE", "hidden_channels": 1%s}' % (b"0" * 400),
        "is 10000",
    ),
    "10 GB": ("m.config.json", b'{"class": "VQVAE", "hidden_channels": 12000}', "larger than the weights"),
    "a huge header": ("m.safetensors", (50 << 20).to_bytes(8, "little"), "header has 52428800 bytes; want"),
    "another size": ("m.config.json", b'{"class": "VQVAE", "hidden_channels": 8}', "doesn't fit m.config"),
    "another model": (
        "m.config.json",
        b'{"class": "WaveNet"}',
        r"m\.safetensors doesn't fit m\.config\.json",
    ),
    "empty weights": ("m.safetensors", b"", "no whole safetensors file"),
    "truncated weights": ("m.safetensors", b"\x90\x00\x00\x00\x00\x00\x00\x00{", "no whole safetensors file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_models(tmp_path: Path, damage: str) -> None:
    save_model(tmp_path, "m", MODELS["gradient"]())
    name, content, message = DAMAGE[damage]
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    before = files(tmp_path)
    with pytest.raises(FileNotFoundError if content is None else ValueError, match=message) as caught:
        load_model(tmp_path, "m")
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize(("name", "kind"), [("vqvae", "gated"), ("prior", "average")])
def test_models_of_another_kind(tmp_path: Path, name: str, kind: str) -> None:
    save_model(tmp_path, name, MODELS[kind]())
    with pytest.raises(
        ValueError, match=rf"{name}\.config\.json is no config of a vqfast model: a .* is no {name}"
    ):
        load_model(tmp_path, name)


def test_weights_of_something_else(tmp_path: Path) -> None:
    save_model(tmp_path, "m", MODELS["gradient"]())
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="doesn't fit"):
        load_model(tmp_path, "m")


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(tmp_path: Path, kind: str, bad: float) -> None:
    model = MODELS[kind]()
    save_model(tmp_path, "m", model)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            tensors = load_file(tmp_path / "m.safetensors")
            tensors[name].flatten()[-1] = bad
            (tmp_path / "bad").mkdir(exist_ok=True)
            save_file(tensors, tmp_path / "bad" / "m.safetensors")
            shutil.copy(tmp_path / "m.config.json", tmp_path / "bad")
            with pytest.raises(ValueError, match=rf"m\.safetensors has {bad} in {name}; want finite numbers"):
                load_model(tmp_path / "bad", "m")
    next(model.parameters()).data.fill_(bad)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=f"has {bad} in .*; want finite numbers"):
        save_model(tmp_path, "m", model)
    assert files(tmp_path) == before


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.complex64])
def test_weights_that_are_no_floats(tmp_path: Path, dtype: torch.dtype) -> None:
    save_model(tmp_path, "m", MODELS["gradient"]())
    tensors = load_file(tmp_path / "m.safetensors")
    name = "decoder.0.weight" if "decoder.0.weight" in tensors else max(tensors)
    save_file({**tensors, name: tensors[name].to(dtype)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=f"has {dtype} in {name}; want torch.float32"):
        load_model(tmp_path, "m")
