"""The suite ``speech`` in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import speech, speech_codes, speech_masked, speech_paired, speech_vectors, speech_waves
from benchmarks.speech_data import Utterances
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
    monkeypatch.setattr(speech, "QUICK", speech.Size(1, 60, 20, 60, 150, 4, 12, 2))
    monkeypatch.setattr(speech, "RUNS", tmp_path / "runs")
    tables = speech.findings(full=False, voices=tmp_path / "voices", human=tmp_path / "voices")
    phones, speakers, heard, prior, samples, *human = tables.values()
    drawn = "converted waveforms, drawn by the WaveNet"
    assert {drawn, f"{drawn}, temperature {speech_waves.COOLER}"} <= heard.keys()
    share = {name: float(row["phones"][:-1]) for name, row in phones.items()}
    assert share["codes, speaker told"] > 60 > share["random codes"] + 15
    assert share["codes from masked prediction"] > 60
    assert share["codes from pairs"] > 60
    assert share["k-means, 40 ms"] > 60 and share["the most common phone"] < 50
    assert share["a classifier that learned from labels, 120 ms"] > 90
    assert list(speakers) == [name for name in phones if "codes" in name or "k-means" in name]
    beside = {name: float(row["neighbours seen"][:-1] or 0) for name, row in phones.items()}
    assert beside["codes, speaker told"] > 60 > beside["random codes"]
    assert beside["codes from pairs"] > 60 and not beside["the most common phone"]
    assert len([name for name in phones if "balanced" in name]) == 4
    assert float(heard["real seconds"]["right"][:-1]) > 90
    assert float(prior["single codes, counted"]["bits"]) <= 7 and len(samples) == 3
    for of_human, of_voices in zip(human, (phones, speakers, heard), strict=True):
        assert of_human.items() <= of_voices.items()
    assert human[0].keys() == phones.keys()
    assert float(heard["converted seconds"]["right"][:-1]) > 90
    capsys.readouterr()
    assert speech.findings(full=False, voices=tmp_path / "voices") == dict(list(tables.items())[:5])
    assert "speech: codes" not in capsys.readouterr().out  # nothing is trained again
    for file in (tmp_path / "voices").rglob("*.lab"):
        file.unlink()
    assert speech.findings(full=False, voices=tmp_path / "voices") == {}
    assert "no label file" in capsys.readouterr().out
    assert speech.findings(full=False, voices=None) == {}


def said(speakers: list[int], phones: list[list[str]]) -> Utterances:
    """Recordings of which only the speakers and the phones are known."""
    none = torch.zeros(2, 1, 1)
    return Utterances([], [], phones, torch.tensor(speakers), ["a", "b"], none, none)


def test_codes_alone_and_with_their_neighbours_tell_phones_and_speakers() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, size=300) for _ in range(20)]
    before = [[str(code) for code in np.roll(row, 1)] for row in rows]  # the phone is the code before
    train, held_out = said([0] * 16, before[:16]), said([0] * 4, before[16:])
    codes = rows[:16], rows[16:]
    assert speech_codes.phones_right(codes, train, held_out) < 0.4
    assert speech_codes.phones_beside(codes, train, held_out, 0) > 0.95
    # both speakers say 0 and 1 as often, one of them each twice
    rows = [np.tile(([0, 1, 0, 1], [0, 0, 1, 1])[i % 2], 100) for i in range(8)]
    train, held_out = said([0, 1] * 2, [[]] * 4), said([0, 1] * 2, [[]] * 4)
    codes = rows[:4], rows[4:]
    assert speech_codes.speakers_right(codes, train, held_out) < 0.9
    assert speech_codes.speakers_right(codes, train, held_out, 10.0) == 1


def test_balanced_codes_are_used_by_every_speaker_as_often() -> None:
    rng = np.random.default_rng(0)
    speakers = [0, 1] * 5
    rows = [torch.from_numpy(rng.normal(0.5 * s, 1, (400, 8))).float() for s in speakers]
    centres = torch.from_numpy(rng.normal(0.25, 1, (speech_codes.K, 8))).float()
    vectors = speech_vectors.Vectors(rows, rows, centres)
    utterances = said(speakers, [[]] * 10)

    def apart(codes: list[np.ndarray]) -> float:
        joined = [np.concatenate(codes[s::2]) for s in (0, 1)]
        shares = [np.bincount(row, minlength=speech_codes.K) / len(row) for row in joined]
        return float(np.abs(shares[0] - shares[1]).sum())

    assert apart(vectors.codes()[0]) > 0.5
    assert apart(vectors.balanced(utterances, utterances)[0]) < 0.2
    told = vectors.codes()[0][0]
    assert (told == torch.cdist(rows[0], centres).argmin(1).numpy()).all()


def test_pairs_are_of_two_places_that_sound_alike() -> None:
    """Of two speakers, whose every vector has one that is nearest by construction."""
    vectors = torch.arange(20.0)[:, None]
    vectors[10:] -= 9.9  # the second speaker has the places of the first, a little apart
    numbers = torch.arange(2).repeat_interleave(10)
    places = speech_paired.Places(numbers, numbers)
    one, two = speech_paired.nearest(vectors, places, across=True)
    assert ((one - two).abs() == 10).all() and len(one) >= 10
    own = speech_paired.nearest(vectors, places, across=False)
    assert (numbers[own[0]] == numbers[own[1]]).all()
    assert ((own[0] - own[1]).abs() >= speech_paired.APART).all()


def test_vectors_go_half_way_to_their_partners() -> None:
    vectors = torch.tensor([[0.0], [4.0], [8.0], [5.0]])
    pairs = [(torch.tensor([0, 1]), torch.tensor([1, 2]))]
    told = speech_paired.averaged(vectors, pairs)
    wanted = vectors.clone()
    for _ in range(speech_paired.AVERAGED):
        a, b, c, d = wanted[:, 0].tolist()
        wanted = torch.tensor([[(a + b) / 2], [(b + (a + c) / 2) / 2], [(c + b) / 2], [d]])
    assert torch.allclose(told, wanted)
