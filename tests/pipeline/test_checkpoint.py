from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vqfast.models import VQVAE
from vqfast.pipeline.checkpoint import (
    Run,
    load_model,
    read_json,
    read_tensors,
    save_model,
    write_json,
    write_tensors,
)
from vqfast.pipeline.ranks import Ranks
from vqfast.priors import PixelCNN, ResidualPixelCNN, WaveNet

MODELS: dict[str, Callable[[], nn.Module]] = {
    "gradient": lambda: VQVAE(hidden_channels=4, num_embeddings=5, embedding_dim=3),
    "average": lambda: VQVAE(hidden_channels=4, num_embeddings=5, embedding_dim=3, decay=0.9),
    "ruseckas": lambda: VQVAE("ruseckas", hidden_channels=4, num_downsamplings=1, num_embeddings=5),
    "gated": lambda: PixelCNN(5, channels=4, num_layers=2, head_channels=4, num_classes=3),
    "residual": lambda: ResidualPixelCNN(5, channels=4, num_residual_blocks=1, num_layers=1),
    "wavenet": lambda: WaveNet(5, channels=4, num_layers=2),
}


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# JSON and tensors


def test_json(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, 0.1 + 0.2, None, "é"], "b": {"c": True}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert len((tmp_path / "x.json").read_text().splitlines()) > 3


NO_JSON = {
    "empty": b"",
    "cut": b'{"a": 1',
    "no text": b"\xff\xfe",
    "a zip": b"PK\x03\x04",
    "nested lists": b"[" * 100_000,
    "nested for a recursion": b'{"a":' * 900 + b"1" + b"}" * 900,
    "nested a bit": b'{"a":' * 20 + b"1" + b"}" * 20,
    "a key twice": b'{"a": 1, "a": 2}',
    "a long number": b"9" * 5000,
    "large": b"[" + b"0," * (16 << 20) + b"0]",
}


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)
def test_broken_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json (is no JSON file|has \d+ bytes; want)"):
        read_json(tmp_path / "x.json")


def test_tensors(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(1.5),
        "transposed": torch.arange(6).view(2, 3).T,
        "grad": torch.randn(3, requires_grad=True),
        "none": torch.empty(0, 2),
        "half": torch.randn(2).bfloat16(),
    }
    write_tensors(tmp_path / "x", tensors)
    found = read_tensors(tmp_path / "x")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in tensors.items())


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"r\xff")
    save_model(folder, "m", MODELS["gated"]())
    assert load_model(folder, "m").num_embeddings == 5


@pytest.mark.parametrize("length", [0, 1, 8, 20, -1])
def test_truncated_tensors(tmp_path: Path, length: int) -> None:
    write_tensors(tmp_path / "x", {"a": torch.randn(10)})
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:length])
    with pytest.raises(ValueError, match="x is no whole safetensors file"):
        read_tensors(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "y")


# models


@pytest.mark.parametrize("kind", MODELS)
def test_models(tmp_path: Path, kind: str) -> None:
    model = MODELS[kind]()
    for buffer in model.buffers():
        buffer.add_(1)
    save_model(tmp_path, "m", model.train())
    found = load_model(tmp_path, "m")
    assert type(found) is type(model) and found.config == model.config and not found.training
    assert found.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in found.state_dict().items())
    assert sorted(files(tmp_path)) == ["m.config.json", "m.safetensors"]


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
    "a list": ("m.config.json", b"[]", "no config of a model of ours"),
    "a string": ("m.config.json", b'"VQVAE"', "no config of a model of ours"),
    "no class": ("m.config.json", b"{}", "no config of a model of ours"),
    "another class": ("m.config.json", b'{"class": "Linear"}', "no config of a model of ours"),
    "no class name": ("m.config.json", b'{"class": []}', "no config of a model of ours"),
    "an unknown argument": ("m.config.json", b'{"class": "VQVAE", "x": 1}', "no config of a model of ours"),
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
        ValueError, match=rf"{name}\.config\.json is no config of a model of ours: a .* is no {name}"
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


# runs


def test_run_folders(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with pytest.raises(FileNotFoundError, match="holds no vqfast run: train one first"):
        Run(folder)
    assert not folder.exists()
    run = Run(folder, create=True)
    assert run.settings("vqvae") is None
    run.stage("vqvae", {"steps": 3, "pair": (1, 2)})
    assert run.settings("vqvae") == {"steps": 3, "pair": [1, 2]}
    del run
    again = Run(str(folder))
    again.stage("vqvae", {"steps": 3, "pair": (1, 2)})
    again.stage("prior", {"steps": 3})
    assert list(read_json(folder / "run.json")["stages"]) == ["vqvae", "prior"]


def test_a_folder_with_hidden_files_only_is_free(tmp_path: Path) -> None:
    (tmp_path / ".vqfast-0.tmp").write_bytes(b"{")  # of a process that was killed
    Run(tmp_path, create=True).stage("vqvae", {})


@pytest.mark.parametrize("create", [False, True])
def test_folders_that_belong_to_something_else(tmp_path: Path, create: bool) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for folder, message in ((tmp_path, "holds something else"), (tmp_path / "thesis.tex", "is a file")):
        with pytest.raises(ValueError, match=message):
            Run(folder, create)
    assert files(tmp_path) == {"thesis.tex": b"x"}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "1", "null", "{}", '{"stages": []}', '{"stages": {"vqvae": 1}}']
)
def test_run_json_of_something_else(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    for create in (False, True):
        with pytest.raises(ValueError, match=r"run\.json is no (vqfast run's|JSON file)"):
            Run(tmp_path, create)
    assert files(tmp_path) == {"run.json": content.encode()}


def test_other_settings_are_refused_once_there_is_output(tmp_path: Path) -> None:
    run = Run(tmp_path, create=True)
    run.stage("vqvae", {"lr": float("nan"), "images": {"size": 8}})
    run.stage("vqvae", {"lr": 0.1, "images": {"size": 8}})  # nothing came of the first
    run.stage("codes/train", {"num": 3})
    (tmp_path / "vqvae.state.safetensors").write_bytes(b"")
    (tmp_path / "codes" / "train").mkdir(parents=True)
    before = files(tmp_path)
    run.stage("vqvae", {"lr": 0.1, "images": {"size": 8}})
    for now, message in (
        ({"lr": 0.2, "images": {"size": 8}}, "holds another vqvae: lr was 0.1, now 0.2; use another folder"),
        ({"lr": 0.1, "images": {"size": 16}}, "vqvae: images.size was 8, now 16; use"),
        ({"images": {"size": 8}, "beta": 2}, "vqvae: beta was None, now 2, lr was 0.1, now None; use"),
    ):
        with pytest.raises(ValueError, match=message):
            run.stage("vqvae", now)
    with pytest.raises(ValueError, match="codes/train: num was 3, now 4"):
        run.stage("codes/train", {"num": 4})
    assert files(tmp_path) == before


def test_links_to_folders_of_others_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run", create=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "codes").symlink_to(tmp_path / "elsewhere")
    run.stage("codes/train", {"num": 3})  # one's own links stay in use
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ValueError, match=r"codes is a link of another user's; want a folder"):
        run.stage("codes/held-out", {"num": 3})
    assert run.settings("codes/held-out") is None


def test_an_unchanged_note_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, create=True)
    run.stage("vqvae", {"a": 1})
    monkeypatch.setattr("vqfast.pipeline.checkpoint.write_json", None)
    run.stage("vqvae", {"a": 1})


def test_one_process_at_a_time(tmp_path: Path) -> None:
    ranks = Ranks(0, 1, torch.device("cpu"))
    run = Run.shared(tmp_path, ranks, create=True)
    with pytest.raises(ValueError, match="in use by another vqfast process"):
        Run(tmp_path, create=True)
    run.stage("vqvae", {"a": 1})
    assert Run(tmp_path, lock=False).settings("vqvae") == {"a": 1}  # reading is free
    del run
    assert json.loads((tmp_path / "run.json").read_text())["format"] == 1
    Run(tmp_path)
