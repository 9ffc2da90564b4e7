"""Recordings in files of every kind."""

from __future__ import annotations

import io
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from vqfast.data import Unreadable, load_audio
from vqfast.data.audio.folder import speakers_of

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
pytest.importorskip("soxr", reason="soxr is not installed")


def tone(rate: int, seconds: float = 0.5, frequency: float = 440, height: float = 0.5) -> np.ndarray:
    return height * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


def write(path: Path, samples: np.ndarray, rate: int, **how: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **how)
    return path


@pytest.mark.parametrize(
    "suffix, subtype, tolerance",
    [
        (".wav", "PCM_U8", 0.01),
        (".WAV", "PCM_16", 1e-4),
        (".wav", "PCM_24", 1e-4),
        (".wav", "FLOAT", 1e-4),
        (".wav", "ULAW", 0.02),
        (".flac", "PCM_16", 1e-4),
        (".ogg", "VORBIS", 0.05),
        (".mp3", "MPEG_LAYER_III", 0.05),
        (".aiff", "PCM_16", 1e-4),
    ],
)
def test_formats_and_depths(tmp_path: Path, suffix: str, subtype: str, tolerance: float) -> None:
    x = tone(16000)
    kind = {".WAV": "WAV"}.get(suffix)
    recordings = load_audio(write(tmp_path / f"x{suffix}", x, 16000, subtype=subtype, format=kind))
    found = recordings.batch([0])[0, 0].numpy()
    assert recordings.rate == 16000 and found.dtype == np.float32
    middle = slice(2000, 6000)  # lossy codecs need some time to begin
    assert np.abs(found[: len(x)][middle] - x[middle]).max() < tolerance


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 96000])
def test_any_rate_becomes_the_one_asked_for(tmp_path: Path, rate: int) -> None:
    recordings = load_audio(write(tmp_path / "x.wav", tone(rate), rate, subtype="FLOAT"), rate=16000)
    found = recordings.batch([0])[0, 0].numpy()
    assert abs(len(found) - 8000) <= 1
    assert np.abs(found[500:7500] - tone(16000)[500:7500]).max() < 1e-3


def test_channels_are_averaged_and_loud_floats_clamped(tmp_path: Path) -> None:
    left = np.linspace(-3, 3, 100)
    write(tmp_path / "x.wav", np.stack([left, np.zeros(100)], 1), 8000, subtype="FLOAT")
    found = load_audio(tmp_path).batch([0])[0, 0].numpy()
    np.testing.assert_allclose(found, (left / 2).clip(-1, 1), atol=1e-6)


def test_silence_and_single_samples(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", np.zeros(300), 8000)
    write(tmp_path / "b.wav", np.full(1, 0.5), 8000)
    recordings = load_audio(tmp_path, rate=16000)
    found = recordings.batch([0, 1])
    assert found.shape == (2, 1, 600) and recordings.lengths.tolist() == [600, 2]
    assert not found[0].any() and found[1, 0, 0] > 0 and not found[1, 0, 2:].any()


def test_parts_are_what_the_whole_is(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 30000)
    recordings = load_audio(write(tmp_path / "x.wav", noise, 22050, subtype="FLOAT"), rate=16000)
    whole = recordings.batch([0])[0, 0]
    for start in (0, 1, 7777, len(whole) - 100):
        part = recordings._recordings.read(np.array([0]), np.array([start]), 4000)[0]
        rest = whole[start : start + 4000]
        assert torch.allclose(torch.from_numpy(part[: len(rest)]), rest, atol=1e-5)
        assert not part[len(rest) :].any()


def test_crops_begin_where_chance_has_it(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.wav", np.linspace(0, (i + 1) / 4, 4000), 8000)
    write(tmp_path / "short.wav", np.full(50, 0.5), 8000)
    recordings = load_audio(tmp_path)
    whole = recordings.batch(range(4))
    crops = recordings.crops([2, 0, 3, 2], 100, torch.tensor([0, 0.5, 0.9, 0.9999999]))
    assert torch.equal(crops[0], whole[2, :, :100]) and torch.equal(crops[3], whole[2, :, -100:])
    assert torch.equal(crops[1], whole[0, :, 1950:2050])
    assert crops.shape == (4, 1, 100) and crops[2, 0].count_nonzero() == 50


def test_bad_files_are_named(tmp_path: Path) -> None:
    write(tmp_path / "good.wav", tone(8000), 8000)
    good = (tmp_path / "good.wav").read_bytes()
    (tmp_path / "empty.wav").write_bytes(b"")
    write(tmp_path / "nothing.wav", np.zeros(0), 8000)
    write(tmp_path / "nan.wav", np.array([0, np.nan]), 8000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no recording")
    (tmp_path / "cut.flac").write_bytes(b"fLaC" + good[:50])
    (tmp_path / "notes.txt").write_text("no recording")
    (tmp_path / "link.wav").symlink_to("nowhere.wav")
    with pytest.raises(Unreadable, match=r"cannot read recording.*--skip-bad") as refused:
        load_audio(tmp_path)
    assert {Path(name).name for name in refused.value.bad} == {
        *("cut.flac", "empty.wav", "link.wav", "nothing.wav", "text.wav")
    }
    recordings = load_audio(tmp_path, skip_bad=True)
    assert recordings.names == ["good.wav"] and "nan.wav" in recordings.findings["bad"]
    assert load_audio(tmp_path, skip_bad=recordings.findings["bad"]).names == ["good.wav"]
    assert "left out 1 without the suffix of a recording: notes.txt" in recordings.describe()
    for name in recordings.findings["bad"]:
        if name != "nan.wav":
            (tmp_path / name).unlink()
    with pytest.raises(Unreadable, match=r"nan\.wav: cannot read recording: it has a sample that is NaN"):
        load_audio(tmp_path).check()


@pytest.mark.parametrize(
    "names, speakers",
    [
        (["anna/a.wav", "anna/b.wav", "ben/a.wav"], ["anna", "anna", "ben"]),
        (["wav48/p225/p225_001.wav", "wav48/p226/p226_001.wav"], ["p225", "p226"]),
        (["84/121123/84-121123-0000.flac", "61/70968/61-70968-0001.flac"], ["84", "61"]),
        (["84/121123/84-121123-0000.flac"], ["84"]),
        (["dev-clean/84/121123/84-121123-0000.flac", "train/61/7/61-7-1.flac"], ["84", "61"]),
        (["anna/a.wav", "anna/b.wav"], ["anna", "anna"]),
        (["a.wav", "b.wav"], []),
        (["anna/a.wav", "b.wav"], []),
    ],
)
def test_speakers_by_folders(names: list[str], speakers: list[str]) -> None:
    assert speakers_of(names) == speakers


def test_speakers_keep_their_numbers(tmp_path: Path) -> None:
    for name in ("anna/a", "ben/a", "ben/b"):
        write(tmp_path / f"all/{name}.wav", tone(8000), 8000)
    write(tmp_path / "ben/ben/a.wav", tone(8000), 8000)
    recordings = load_audio(tmp_path / "all")
    assert recordings.labels.tolist() == [0, 1, 1] and recordings.num_classes == 2
    train, held_out = recordings.split(0.34, seed=0)
    assert len(held_out) == 1 and train.num_classes == held_out.num_classes == 2
    assert sorted(train.names + held_out.names) == recordings.names
    other = load_audio(tmp_path / "ben", classes=recordings.findings["classes"])
    assert other.labels.tolist() == [1]
    assert load_audio(tmp_path / "ben", classes=["anna"]).labels is None


def test_written_files_are_read_by_others(tmp_path: Path) -> None:
    from vqfast.data.audio import wav_bytes

    with wave.open(io.BytesIO(wav_bytes(np.array([0, 0.5, -1, 2]), 8000))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        assert np.frombuffer(file.readframes(4), np.int16).tolist() == [0, 16384, -32768, 32767]


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.wav", tone(8000), 8000)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ModuleNotFoundError, match=r"vqfast\[audio\]"):
        load_audio(tmp_path)


def test_a_file_is_not_bad_because_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = load_audio(write(tmp_path / "x.wav", tone(8000), 8000))

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("vqfast.data.audio.folder.read_recording", full)
    with pytest.raises(MemoryError):
        recordings.batch([0])


@pytest.mark.parametrize("suffix", ["wav", "aiff", "au"])
def test_a_truncated_file_is_no_whole_recording(tmp_path: Path, suffix: str) -> None:
    """libsndfile takes what is there; of headers that don't know the length, that is right."""
    for name in ("cut", "whole"):
        soundfile.write(tmp_path / f"{name}.{suffix}", np.full(8000, 0.1), 8000)
    data = (tmp_path / f"cut.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) - 8000])
    with pytest.raises(Unreadable, match=r"cut\.\w+: cannot read recording: it has 0\.50 seconds less than"):
        load_audio(tmp_path)
    assert load_audio(tmp_path, skip_bad=True).names == [f"whole.{suffix}"]
    if suffix == "wav":
        place = data.index(b"data") + 4
        streamed = data[:4] + b"\xff" * 4 + data[8:place] + b"\xff" * 4 + data[place + 4 :]
        (tmp_path / "cut.wav").write_bytes(streamed)
        assert load_audio(tmp_path).lengths.tolist() == [8000, 8000]


def test_a_truncated_mp3_is_no_whole_recording(tmp_path: Path) -> None:
    mp3 = write(tmp_path / "whole.mp3", tone(16000, seconds=4), 16000).read_bytes()
    (tmp_path / "cut.mp3").write_bytes(mp3[: len(mp3) // 2])
    with pytest.raises(Unreadable, match=r"cut\.mp3: cannot read recording: it has .* seconds less") as found:
        load_audio(tmp_path).check()
    assert list(found.value.bad) == [str(tmp_path / "cut.mp3")]
    assert load_audio(tmp_path, skip_bad=True).names == ["whole.mp3"]
