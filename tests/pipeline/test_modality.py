"""The pipeline knows data by the protocol alone: a kind of data made up here goes through all steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import vqfast.pipeline
from tests.pipeline.pages import Page
from vqfast.data import MODALITIES
from vqfast.data.protocol import Format, Media
from vqfast.pipeline import (
    Completion,
    Run,
    SampleRequest,
    Training,
    decode,
    encode,
    modality_of,
    reopen_parts,
    report,
    sample,
    train_priors,
    train_vqvae,
)
from vqfast.pipeline.parts import load_like_run


class Ramps:
    """A file with numbers, each of which stands for a ramp of that height."""

    labels, num_classes, shape = None, None, (1, 4, 8)

    def __init__(self, heights: list[float], depth: int | None) -> None:
        self.heights, self.depth, self.fingerprint = heights, depth, str(heights)

    def __len__(self) -> int:
        return len(self.heights)

    def batch(self, numbers: Sequence[int]) -> Tensor:
        heights = torch.tensor([self.heights[number] for number in numbers]).view(-1, 1, 1, 1)
        return heights * torch.linspace(0, 1, 8).expand(1, 1, 4, 8)

    def varied(self, numbers: Sequence[int], chances: Tensor) -> Tensor:
        return self.batch(numbers)

    @property
    def stamp(self) -> str:
        return self.fingerprint

    @property
    def findings(self) -> dict[str, Any]:
        return {"depth": 7, "classes": None, "bad": {}}

    def describe(self) -> list[str]:
        return [f"{len(self)} ramps"]

    def check(self, advance: Callable[[int], object]) -> None:
        advance(len(self))

    def split(self, val: float, *, seed: int, group: str | None = None) -> tuple[Ramps, Ramps]:
        end = int(val * len(self))
        return Ramps(self.heights[end:], self.depth), Ramps(self.heights[:end], self.depth)

    def subset(self, numbers: np.ndarray) -> Ramps:
        return Ramps([self.heights[number] for number in numbers], self.depth)


def heights(batches: Iterator[Tensor]) -> Iterator[bytes]:
    yield json.dumps([round(item.max().item(), 3) for batch in batches for item in batch]).encode()


class RampModality:
    item = "ramp"
    like_run = ("depth",)
    formats: ClassVar = {"list": Format(lambda numbers: [f"{numbers.start}.json"], heights)}

    def load(self, data: str | Path, *, depth: int | None = None, **options: object) -> Ramps:
        return Ramps(json.loads(Path(data).read_text()), depth)

    def found(self, findings: Mapping[str, Any]) -> RampModality:
        assert findings["depth"] == 7
        return self

    def kept_mask(self, keep: str, shape: tuple[int, ...]) -> Tensor:
        return torch.arange(shape[1]).expand(shape) < int(keep)

    def media(self, item: Tensor) -> list[Media]:
        return [Media("audio/wav", str(item.max().item()).encode())]

    def show_items(self, items: Tensor, *, columns: int) -> bytes:
        return b"items"

    def show_pairs(self, originals: Tensor, reconstructions: Tensor) -> bytes:
        return b"pairs"

    def show_completions(self, originals: Tensor, kept: Tensor, completions: Tensor) -> bytes:
        return str((*originals.shape, *kept.shape, *completions.shape)).encode()


@pytest.fixture
def ramps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(MODALITIES, "ramps", RampModality())
    path = tmp_path / "ramps.json"
    path.write_text(json.dumps(np.linspace(0, 1, 40).tolist()))
    return path


def test_another_kind_of_data_goes_through_all_steps(ramps: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", create=True)
    small = {"hidden_channels": 4, "num_embeddings": 4, "embedding_dim": 2}
    short = Training(steps=2, batch_size=4)
    vqvae = train_vqvae(run, ramps, modality="ramps", model_options=small, training=short)
    assert modality_of(run).item == "ramp" and run.settings("data")["depth"] == 7
    parts = reopen_parts(run)
    assert {name: len(part) for name, part in parts.items()} == {"train": 36, "held-out": 4}
    assert load_like_run(run, vqvae, ramps).depth == 7
    for part, dataset in parts.items():
        encode(run, vqvae, dataset, part=part)
    (prior,) = train_priors(run, prior_options={"channels": 4, "num_layers": 1}, training=short)
    samples = sample(run, [prior], SampleRequest(5, [(1, 2)]))
    decode(run, vqvae, samples)
    assert len(json.loads((run.folder / "list" / "0.json").read_text())) == 5
    completion = Completion(vqvae, parts["held-out"], modality_of(run), keep="1", draws=3)
    out = Run(tmp_path / "out", create=True)
    completed = sample(run, [prior], completion.request([prior]), out=out)
    assert torch.equal(
        completed.all()[0][0][::3, :, 0], vqvae.encode(parts["held-out"].batch(range(4)))[:, :, 0]
    )
    assert completion.picture(completed) == b"(4, 1, 4, 8, 1, 2, 3, 4, 1, 4, 8)"
    page = Page(report(run))
    assert not page.missing and len(page.pictures()) == 4  # the codes of the held-out ramps
    assert len(page.all("audio")) >= 4 + 4 + 5


def test_only_the_demo_knows_of_images() -> None:
    folder = Path(vqfast.pipeline.__file__).parent
    assert {path.stem for path in folder.glob("*.py") if "data.images" in path.read_text()} == {"demo"}
    with pytest.raises(ValueError, match="modality is 'smells'; want 'images', 'audio' or 'video'"):
        train_vqvae(None, "x", modality="smells")
