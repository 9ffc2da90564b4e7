"""The suite ``speech`` in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import speech, speech_codes, speech_masked, speech_waves
from tests.voices import VOWEL_SAMPLES, write_voices

pytest.importorskip("soundfile", reason="soundfile is not installed")
pytest.importorskip("soxr", reason="soxr is not installed")


def test_phones_and_speakers_are_read_from_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = 4000
    for name, text in write_voices(tmp_path / "voices", recordings=6, vowels=12).items():
        ends = (np.arange(len(text)) + 1) * VOWEL_SAMPLES / rate
        lines = [f"{end:.4f} 100 {vowel}" for end, vowel in zip(ends, text, strict=True)]
        (tmp_path / "voices" / name).with_suffix(".lab").write_text("\n".join(["#", *lines]))
    small = {**speech.MODEL, "hidden_channels": 32, "embedding_dim": 16, "wavenet_layers": 4}
    for module in (speech, speech_codes):
        monkeypatch.setattr(module, "MODEL", small)
    for name, value in (("BATCH", 8), ("CODES", 8), ("SEGMENT", 20)):
        monkeypatch.setattr(speech_codes, name, value)
    monkeypatch.setattr(speech_waves, "SEGMENT", 20)
    monkeypatch.setattr(speech_masked, "CLUSTERS", 16)
    monkeypatch.setattr(speech, "QUICK", speech.Size(1, 60, 20, 4, 12, 2))
    monkeypatch.setattr(speech, "RUNS", tmp_path / "runs")
    tables = speech.findings(full=False, voices=tmp_path / "voices", human=tmp_path / "voices")
    phones, speakers, heard, prior, samples, *human = tables.values()
    share = {name: float(row["phones"][:-1]) for name, row in phones.items()}
    assert share["codes, speaker told"] > 60 > share["random codes"] + 15
    assert share["codes from masked prediction"] > 60
    assert share["k-means, 40 ms"] > 60 and share["the most common phone"] < 50
    assert share["a classifier that learned from labels, 120 ms"] > 90
    assert list(speakers) == [name for name in phones if "codes" in name or "k-means" in name]
    assert float(heard["real seconds"]["right"][:-1]) > 90
    assert float(prior["single codes, counted"]["bits"]) <= 7 and len(samples) == 3
    assert human == [phones, speakers]
    capsys.readouterr()
    assert speech.findings(full=False, voices=tmp_path / "voices") == dict(list(tables.items())[:5])
    assert "speech: codes" not in capsys.readouterr().out  # nothing is trained again
    for file in (tmp_path / "voices").rglob("*.lab"):
        file.unlink()
    assert speech.findings(full=False, voices=tmp_path / "voices") == {}
    assert "no label file" in capsys.readouterr().out
    assert speech.findings(full=False, voices=None) == {}
