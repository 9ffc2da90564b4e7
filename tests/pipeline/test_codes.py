"""Codes that somebody names: the folder of a stage, or a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.pipeline.trained import train_its_prior
from vqfast.models import VQVAE
from vqfast.pipeline import Run, bits_per_code, encode, open_codes, reopen_parts, shards, stage_codes
from vqfast.priors.base import CausalPrior


def test_codes_that_somebody_names(tmp_path: Path, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (indices,), labels = stage_codes(trained, "codes/train").all()
    found = open_codes(trained.folder / "codes" / "train").all()
    assert torch.equal(found[0][0], indices) and torch.equal(found[1], labels)
    monkeypatch.chdir(trained.folder / "codes")
    assert open_codes("held-out").num == 15
    name = str(tmp_path / "codes.npy")
    np.save(name, indices.numpy().astype(np.uint8))
    array = open_codes(name)
    assert array.num == 45 and array.all()[1] is None
    assert torch.equal(array.read(range(3, 40))[0][0], indices[3:40])
    np.save(name, indices.numpy()[::-1])
    assert open_codes(name).fingerprint != array.fingerprint
    for bad in (np.zeros(2, int), np.zeros((2, 3, 3)), np.zeros((0, 3, 3), int), np.array({}, dtype=object)):
        np.save(name, bad, allow_pickle=True)
        with pytest.raises(ValueError, match="codes is "):
            open_codes(name)
    for place, error in (
        (tmp_path, ValueError),
        (tmp_path / "nope", FileNotFoundError),
        (trained.folder, Exception),
    ):
        with pytest.raises(error, match=r"codes is |holds no"):
            open_codes(str(place))


def test_codes_in_safetensors_are_those_in_npz(
    tmp_path: Path, trained: Run, vqvae: VQVAE, prior: CausalPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that reads codes reads them: a prior that is trained on them has the same weights."""
    shutil.copytree(
        trained.folder, tmp_path / "run", ignore=shutil.ignore_patterns("codes", "prior*", ".lock")
    )
    run, theirs = Run(tmp_path / "run"), stage_codes(trained, "codes/train")
    (expected,), labels = theirs.all()
    monkeypatch.setattr(shards, "SHARD", 16)
    for part, images in reopen_parts(run).items():
        with pytest.raises(ValueError, match=r"format is 'npy'; want"):
            encode(run, vqvae, images, part=part, format="npy")
        for format in ("safetensors", None):  # the folder's own format is the default
            encode(run, vqvae, images, part=part, format=format)
    files = sorted(path.name for path in (run.folder / "codes" / "train").iterdir())
    assert files == ["00000.safetensors", "00001.safetensors", "00002.safetensors"]
    arrays = load_file(run.folder / "codes" / "train" / files[0])
    assert arrays["indices"].dtype == np.uint8 and arrays.keys() == {"indices", "labels"}
    ours = stage_codes(run, "codes/train")
    (indices,), own_labels = ours.all()
    assert torch.equal(indices, expected) and torch.equal(own_labels, labels)
    assert ours.fingerprint == theirs.fingerprint
    with pytest.raises(ValueError, match="format was 'safetensors', now None; use another folder"):
        encode(run, vqvae, images, part=part, format="npz")
    trained_again = train_its_prior(run)
    for name, weight in prior.state_dict().items():
        assert torch.equal(trained_again.state_dict()[name], weight)


@pytest.mark.parametrize("format", shards.FORMATS)
def test_a_file_of_codes_is_read_by_itself(
    tmp_path: Path, trained: Run, prior: CausalPrior, format: str
) -> None:
    (indices,), labels = stage_codes(trained, "codes/held-out").all()
    arrays = {"indices": indices.numpy().astype(np.uint8), "labels": labels.numpy()}
    path = tmp_path / f"codes.{format}"

    def save(arrays: dict[str, np.ndarray]) -> None:
        if format == "npz":
            np.savez(path, **arrays)
        else:
            save_file(arrays, path)

    save(arrays)
    codes = open_codes(path)
    assert codes.num == 15 and codes.actions(range(3)) is None
    assert torch.equal(codes.read(range(4, 9))[0][0], indices[4:9])
    assert torch.equal(codes.all()[1], labels)
    expected = bits_per_code([prior], stage_codes(trained, "codes/held-out"))
    torch.testing.assert_close(bits_per_code([prior], codes), expected)
    save({**arrays, "labels": arrays["labels"][::-1].copy()})
    assert open_codes(path).fingerprint != codes.fingerprint
    floats = arrays["indices"].astype(np.float32)
    for bad in (
        {"indices": floats},
        {"labels": arrays["labels"]},
        {**arrays, "labels": arrays["labels"][:3]},
    ):
        save(bad)
        with pytest.raises(ValueError, match="no whole file of codes"):
            open_codes(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="no whole file of codes"):
        open_codes(path)
