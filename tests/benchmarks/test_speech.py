"""The suite ``speech`` in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import speech
from tests.voices import VOWEL_SAMPLES, write_voices

pytest.importorskip("soundfile", reason="soundfile is not installed")
pytest.importorskip("soxr", reason="soxr is not installed")


def test_phones_and_speakers_are_read_from_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = 4000
    for name, text in write_voices(tmp_path, recordings=6, vowels=12).items():
        ends = (np.arange(len(text)) + 1) * VOWEL_SAMPLES / rate
        lines = [f"{end:.4f} 100 {vowel}" for end, vowel in zip(ends, text, strict=True)]
        (tmp_path / name).with_suffix(".lab").write_text("\n".join(["#", *lines]))
    small = {**speech.MODEL, "hidden_channels": 32, "embedding_dim": 16}
    for name, value in (("MODEL", small), ("QUICK", (60, 1)), ("BATCH", 8), ("WINDOWS", 32)):
        monkeypatch.setattr(speech, name, value)
    phones, speakers = speech.findings(full=False, voices=tmp_path).values()
    share = {name: float(row["phones"][:-1]) for name, row in phones.items()}
    assert share["codes, speaker told"] > 60 > share["random codes"] + 15
    assert share["k-means of the spectrogram"] > 60 and share["the most common phone"] < 50
    assert set(speakers) == {"codes, speaker told", "codes, speaker not told", "k-means of the spectrogram"}
    (tmp_path / "anna" / "0.lab").unlink()
    assert speech.findings(full=False, voices=tmp_path) == {}
    assert "no labels of anna/0.wav" in capsys.readouterr().out
    assert speech.findings(full=False, voices=None) == {}
