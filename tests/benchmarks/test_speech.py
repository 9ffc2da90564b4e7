"""The suite ``speech`` in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import speech, speech_codes, speech_masked, speech_waves
from benchmarks.speech_sound import waves_of
from tests.voices import VOWEL_SAMPLES, write_voices
from vqfast.models.speech_encoder import LogMel

pytest.importorskip("soundfile", reason="soundfile is not installed")
pytest.importorskip("soxr", reason="soxr is not installed")


def test_spectrograms_become_waveforms_that_have_them() -> None:
    """Of pulses through a resonator, whose bands differ by 6 nats."""
    pulses = (np.arange(16000) % 125 == 0).astype(float)
    sound = np.convolve(pulses, 0.97 ** np.arange(400) * np.cos(2 * np.pi * 700 / 16000 * np.arange(400)))
    log_mel = LogMel(40, 160, 16000)
    mels = log_mel(0.3 * torch.from_numpy(sound[:16000]).float().view(1, 1, -1))
    made = waves_of(log_mel, mels)
    assert made.shape == (1, 1, 16000)
    assert (log_mel(made) - mels)[..., 4:-4].abs().mean() < 0.1 < mels.std()


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
    assert "converted waveforms, drawn by the WaveNet" in heard
    share = {name: float(row["phones"][:-1]) for name, row in phones.items()}
    assert share["codes, speaker told"] > 60 > share["random codes"] + 15
    assert share["codes from masked prediction"] > 60
    assert share["k-means, 40 ms"] > 60 and share["the most common phone"] < 50
    assert share["a classifier that learned from labels, 120 ms"] > 90
    assert list(speakers) == [name for name in phones if "codes" in name or "k-means" in name]
    assert float(heard["real seconds"]["right"][:-1]) > 90
    assert float(prior["single codes, counted"]["bits"]) <= 7 and len(samples) == 3
    assert human[:2] == [phones, speakers] and len(human) == 3 and human[2].items() < heard.items()
    right = {name: float(row["right"][:-1]) for name, row in heard.items()}
    assert abs(right["converted waveforms of these spectrograms"] - right["converted seconds"]) <= 25
    capsys.readouterr()
    assert speech.findings(full=False, voices=tmp_path / "voices") == dict(list(tables.items())[:5])
    assert "speech: codes" not in capsys.readouterr().out  # nothing is trained again
    for file in (tmp_path / "voices").rglob("*.lab"):
        file.unlink()
    assert speech.findings(full=False, voices=tmp_path / "voices") == {}
    assert "no label file" in capsys.readouterr().out
    assert speech.findings(full=False, voices=None) == {}
