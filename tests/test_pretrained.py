"""Models in folders and on the Hub, whose client is replaced by one that works on folders here."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vqfast
from vqfast.priors import CausalPrior, ConditionedPrior


def prior() -> vqfast.PixelCNN:
    return vqfast.PixelCNN(5, channels=4, num_layers=2, head_channels=4, num_classes=3)


def test_a_model_comes_back(tmp_path: Path) -> None:
    model = vqfast.VQVAE(hidden_channels=4, num_embeddings=5, embedding_dim=3, decay=0.9)
    model.save_pretrained(tmp_path / "new" / "model")
    found = vqfast.VQVAE.from_pretrained(str(tmp_path / "new" / "model"))
    assert not found.training and found.config == model.config
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(found.encode(images), model.eval().encode(images))
    assert sorted(path.name for path in (tmp_path / "new" / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_model_in_a_model_comes_back(tmp_path: Path) -> None:
    inner = vqfast.WaveNet(5, channels=4, num_layers=1, condition_channels=3)
    model = ConditionedPrior(inner, [6], [2], num_residual_blocks=1)
    model.save_pretrained(tmp_path)
    found = ConditionedPrior.from_pretrained(tmp_path)
    top = torch.randint(6, (2, 4))
    assert torch.equal(found.sample(2, (8,), coarser=[top]), model.sample(2, (8,), coarser=[top]))


def test_a_class_takes_its_own_kind_only(tmp_path: Path) -> None:
    prior().save_pretrained(tmp_path)
    assert isinstance(CausalPrior.from_pretrained(tmp_path), vqfast.PixelCNN)
    with pytest.raises(ValueError, match="a PixelCNN is no VQVAE"):
        vqfast.VQVAE.from_pretrained(tmp_path)


def test_a_model_is_replaced_when_asked_for_only(tmp_path: Path) -> None:
    first, second = prior(), prior()
    first.save_pretrained(tmp_path)
    with pytest.raises(FileExistsError, match=r"has model\.safetensors and config\.json; want another"):
        second.save_pretrained(tmp_path)
    codes = torch.zeros(1, 2, 2, dtype=torch.int64)
    assert torch.equal(vqfast.PixelCNN.from_pretrained(tmp_path)(codes, 0), first.eval()(codes, 0))
    second.save_pretrained(tmp_path, overwrite=True)
    assert torch.equal(vqfast.PixelCNN.from_pretrained(tmp_path)(codes, 0), second.eval()(codes, 0))


def test_a_weight_that_is_not_finite(tmp_path: Path) -> None:
    model = prior()
    next(model.parameters()).data.view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match="nan"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_folders_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        vqfast.VQVAE.from_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it weren't installed
    with pytest.raises(FileNotFoundError, match="nowhere is no folder; want one, or huggingface_hub"):
        vqfast.VQVAE.from_pretrained("nowhere")


class Hub:
    """The client of a hub whose repositories are folders."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked = root, dict[str, Any]()

    def HfApi(self, token: str | None) -> Hub:
        self.asked["token"] = token
        return self

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> SimpleNamespace:
        self.asked["private"] = private
        (self.root / f"someone/{repo_id}").mkdir(parents=True, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=f"someone/{repo_id}")

    def file_exists(self, repo_id: str, name: str, *, revision: str | None) -> bool:
        return (self.root / repo_id / name).exists()

    def upload_folder(self, *, repo_id: str, folder_path: str, **options: str | None) -> SimpleNamespace:
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"hub/{repo_id}/{options['commit_message']}")

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        self.asked |= options
        return str(self.root / repo_id)


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    model = prior()
    url = model.push_to_hub("digits", private=True, token="secret", commit_message="first")
    assert url == "hub/someone/digits/first"
    assert hub.asked == {"token": "secret", "private": True}
    card = hub.root / "someone/digits/README.md"
    assert 'vqfast.PixelCNN.from_pretrained("someone/digits")' in card.read_text()
    card.write_text("the user's own")
    model.push_to_hub("digits")
    assert card.read_text() == "the user's own"
    found = vqfast.PixelCNN.from_pretrained("someone/digits", revision="v1", local_files_only=True)
    assert torch.equal(found.sample(1, (3, 3), labels=1), model.sample(1, (3, 3), labels=1))
    assert hub.asked["revision"] == "v1" and hub.asked["local_files_only"] is True
    assert hub.asked["allow_patterns"] == ["model.safetensors", "config.json"]  # nothing that could be code
