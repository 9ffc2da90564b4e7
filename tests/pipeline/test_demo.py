from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vqfast.cli import main
from vqfast.data import Images, load_images
from vqfast.pipeline import demo as module
from vqfast.pipeline import load_model
from vqfast.pipeline.demo import Shifted, accuracy, all_of, fit_classifier, race, run_demo, summary
from vqfast.pipeline.ranks import ALONE
from vqfast.priors import PixelCNN
from vqfast.saving.storage import read_json

NAMED = {"reconstructions.png", "code_maps.png", "samples.png", "vqvae.png", "prior.png", "metrics.json"}
MODELS = {f"{model}.{suffix}" for model in ("vqvae", "prior") for suffix in ("safetensors", "config.json")}


@pytest.fixture(scope="module")
def digits() -> tuple[Images, Images]:
    return load_images("digits").split(module.VAL, seed=0)


# its pieces


def test_shifted(digits: tuple[Images, Images]) -> None:
    images = digits[1]
    shifted, count = Shifted(images), len(images)
    assert len(shifted) == 9 * count and shifted.shape == images.shape and shifted.num_classes == 10
    assert shifted.fingerprint != images.fingerprint and images.fingerprint in shifted.fingerprint
    rows = np.random.default_rng(0).integers(0, len(shifted), 60)
    found = shifted.batch(rows)
    assert found.shape == (60, *images.shape) and found.dtype == torch.float32
    for row, image in zip(rows, found.numpy(), strict=True):
        original = images.batch([row % count]).numpy()[0]
        assert shifted.labels[row] == images.labels[row % count]
        down, right = 1 - row // count // 3, 1 - row // count % 3
        moved = np.roll(original, (down, right), axis=(1, 2))
        for axis, by in ((1, down), (2, right)):  # what came in at the other side is empty
            edge = [slice(None)] * 3
            edge[axis] = slice(0, 1) if by > 0 else slice(-1, None)
            if by:
                moved[tuple(edge)] = 0
        np.testing.assert_array_equal(image, moved)


def test_every_image_is_moved_in_nine_ways(digits: tuple[Images, Images]) -> None:
    images = digits[1]
    shifted = Shifted(images)
    nine = shifted.batch(torch.arange(9) * len(images) + 3)
    assert len({image.numpy().tobytes() for image in nine}) == 9
    assert torch.equal(nine[4:5], images.batch([3]))


def test_the_classifier_recognises_real_digits(digits: tuple[Images, Images]) -> None:
    train, held_out = digits
    classifier = fit_classifier(train)
    images = all_of(held_out)
    assert accuracy(classifier, images, held_out.labels) >= 0.97
    assert accuracy(classifier, images, (held_out.labels + 1) % 10) < 0.02
    assert accuracy(classifier, torch.rand_like(images), held_out.labels) < 0.3


@pytest.mark.slow
def test_the_demos_classifier_recognises_shifted_digits(digits: tuple[Images, Images]) -> None:
    train, held_out = digits
    shifted = Shifted(held_out)
    numbers = range(0, len(shifted), 4)
    images, labels = shifted.batch(numbers), shifted.labels[::4]
    assert accuracy(fit_classifier(Shifted(train)), images, labels) >= 0.985
    assert accuracy(fit_classifier(train), images, labels) < 0.985  # it has seen none


def test_accuracy() -> None:
    class Parity:
        def predict(self, flat: np.ndarray) -> np.ndarray:
            assert flat.shape == (4, 2)
            return flat.sum(1).astype(int) % 2

    images = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).view(4, 1, 1, 2).float()
    assert accuracy(Parity(), images, np.array([0, 1, 1, 0])) == 1
    assert accuracy(Parity(), images, np.array([0, 1, 0, 1])) == 0.5


@pytest.mark.parametrize("classes", [None, 10])
def test_race(classes: int | None) -> None:
    torch.manual_seed(0)
    prior = PixelCNN(16, channels=8, num_layers=3, num_classes=classes, head_channels=8)
    found = race(prior, (4, 4), batch=12)
    assert found["sampled_together"] == 12 and found["codes_that_agree"] >= 0.99
    assert found["naive_seconds"] > 0 < found["cached_seconds"]
    assert found["cached_is_times_faster"] == found["naive_seconds"] / found["cached_seconds"]


# all of it


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 4, "decay": 0.95}
    monkeypatch.setattr(module, "VQVAE", small)
    monkeypatch.setattr(module, "PRIOR", {"channels": 8, "num_layers": 2, "head_channels": 8})
    monkeypatch.setattr(module, "SAMPLES_PER_CLASS", 12)


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and contents of all files."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in found
    }


def unit(value: Any) -> bool:
    return 0 <= value <= 1


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    command = ["demo", "--out", str(folder), "--steps-scale", "0.02", "--seed", "1"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said == summary(str(folder)) + "\n" and str(folder) in said
    made = files(folder)
    assert NAMED | MODELS | {"run.json", "timings.json"} <= set(made)
    assert not any(Path(name).name.startswith(".") for name in made)
    states = {"vqvae.state.safetensors", "prior.state.safetensors"}  # for more steps later
    assert {name for name in made if "state" in name} == states
    for name, (_, data) in made.items():
        if name.endswith(".png"):
            Image.open(io.BytesIO(data)).load()

    metrics, timings = (read_json(folder / f"{name}.json") for name in ("metrics", "timings"))
    assert metrics["classifier_accuracy_on_held_out_digits"] >= 0.97
    assert metrics["generated"] == 120 and unit(metrics["classifier_agrees_with_requested_label"])
    assert set(metrics["prior_bits_per_code"]) == {"train", "held_out"}
    assert all(0 < bits < 8 for bits in metrics["prior_bits_per_code"].values())
    assert unit(metrics["codes_in_use"]) and unit(metrics["reconstruction_held_out"]["codes_in_use"])
    assert metrics["reconstruction_held_out"]["psnr"] > 5
    assert timings["codes_that_agree"] >= 0.99 and timings["seconds"] > 0
    assert load_model(folder, "prior").num_classes == 10

    assert main(command) == 0  # all is done
    assert capsys.readouterr().out == said and files(folder) == made
    assert run_demo(folder, ALONE, seed=1, steps_scale=0.02) == metrics and files(folder) == made
    assert main([*command[:-1], "2"]) == 2
    assert (
        "has vqvae with other settings: data.seed was 1, now 2, seed was 1, now 2" in capsys.readouterr().err
    )
    assert files(folder) == made


def test_figures_of_something_else(tmp_path: Path) -> None:
    for name, text in (("metrics", "{}"), ("timings", "[]")):
        (tmp_path / f"{name}.json").write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.json or timings\.json of something else"):
        summary(str(tmp_path))
