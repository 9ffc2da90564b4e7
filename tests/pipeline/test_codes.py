"""Codes that somebody names: the folder of a stage, or a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vqfast.pipeline import Run, open_codes, stage_codes


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
