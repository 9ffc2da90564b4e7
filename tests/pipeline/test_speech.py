"""Recordings through every step, with voices whose pitch and vowels are known."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.pipeline.pages import Page
from tests.voices import RATE, SPEAKERS, VOWEL_SAMPLES, write_voices
from vqfast.data import Recordings, load_audio
from vqfast.data.audio import wav_bytes
from vqfast.models import SpeechVQVAE
from vqfast.pipeline import (
    Completion,
    PriorTraining,
    Rejection,
    Run,
    SampleRequest,
    Training,
    bits_per_code,
    convert,
    decode,
    encode,
    load_model,
    measure_speech,
    modality_of,
    num_rejected,
    reopen_parts,
    report,
    sample,
    stage_codes,
    train_priors,
    train_speech,
)
from vqfast.pipeline.coding import encoded
from vqfast.pipeline.items import decode_items
from vqfast.pipeline.parts import load_like_run
from vqfast.pipeline.speech_measures import bits_per_sample

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
pytest.importorskip("soxr", reason="soxr is not installed")

SMALL: dict[str, Any] = {
    "encoder_strides": (25, 4),
    "num_mels": 20,
    "mel_weight": 10.0,
    "hidden_channels": 32,
    "num_residual_blocks": 1,
    "wavenet_channels": 8,
    "wavenet_layers": 4,
    "dilation_cycle": 4,
    "condition_channels": 8,
    "num_embeddings": 16,
    "embedding_dim": 8,
}
STEPS = 120


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("voices")
    return folder, write_voices(folder)


def train(run: Run, data: Path, **training: Any) -> Any:
    options = {"steps": STEPS, "batch_size": 8, "lr": 5e-3, **training}
    return train_speech(
        run, data, reading={"crop": 0.1}, val=0.25, model_options=SMALL, training=Training(**options)
    )


@pytest.fixture(scope="module")
def trained(voices: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a model, codes, and a prior."""
    run = Run(tmp_path_factory.mktemp("run"), create=True)
    vqvae = train(run, voices[0], val_every=STEPS)
    for part, dataset in reopen_parts(run).items():
        encode(run, vqvae, dataset, part=part)
    train_priors(
        run,
        prior_options={"channels": 8, "num_layers": 3},
        training=PriorTraining(steps=30, batch_size=8, lr=1e-2),
    )
    return run


def test_the_codes_are_used_and_tell_of_the_waveform(trained: Run) -> None:
    vqvae = load_model(trained.folder, "vqvae")
    held_out = reopen_parts(trained)["held-out"]
    figures = measure_speech(vqvae, held_out)
    assert figures["perplexity"] > 3 and figures["codes_in_use"] > 0.25
    assert 0 < figures["bits_per_sample"] < 7.5
    assert figures["bits_per_sample"] == pytest.approx(bits_per_sample(vqvae, held_out).mean().item())
    other = []
    for number, length in enumerate(held_out.lengths.tolist()):
        x = held_out.batch([number])[:, :, :length]
        indices = vqvae.encode(x)
        nats = vqvae.nats(x, indices.flip(1), labels=int(held_out.labels[number]))
        other.append(nats.item() / length / np.log(2))
    assert np.mean(other) > figures["bits_per_sample"] + 0.01


def test_codes_end_where_the_recording_does(trained: Run) -> None:
    (indices,), labels = stage_codes(trained, "codes/train").all()
    part = reopen_parts(trained)["train"]
    assert indices.shape == (12, 20) and labels.tolist() == part.labels.tolist()
    assert (indices >= 0).sum(1).tolist() == (part.lengths // 100).tolist()
    assert set(part.lengths.tolist()) == {4 * VOWEL_SAMPLES, 5 * VOWEL_SAMPLES}


def test_codes_tell_the_vowels(trained: Run, voices: tuple[Path, dict[str, str]]) -> None:
    """The vowel that a code goes with most, in training, is right for most codes held out."""
    counts = np.zeros((16, 4))
    right = []
    for part, dataset in reopen_parts(trained).items():
        (indices,), _ = stage_codes(trained, f"codes/{part}").all()
        for name, row in zip(dataset.names, indices.tolist(), strict=True):
            for place, code in enumerate(row):
                if code >= 0:
                    vowel = "aiu#".index(voices[1][name][place * 100 // VOWEL_SAMPLES])
                    if part == "train":
                        counts[code, vowel] += 1
                    else:
                        right.append(counts[code].argmax() == vowel)
    assert np.mean(right) > 0.65


def test_training_resumes_to_the_bit(
    voices: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(Run(tmp_path / "whole", create=True), voices[0], steps=12)
    stopped = Run(tmp_path / "stopped", create=True)
    crops, steps = Recordings.crops, []

    def interrupted(self: Recordings, numbers: Any, length: int, chances: Any) -> Any:
        steps.append(float(chances[0]))
        if len(steps) == 7:
            signal.raise_signal(signal.SIGINT)
        return crops(self, numbers, length, chances)

    monkeypatch.setattr(Recordings, "crops", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, voices[0], steps=12)
    assert len(steps) == 7
    again = train(stopped, voices[0], steps=12)
    assert len(steps) == len(set(steps)) == 12
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_samples_are_recordings(trained: Run, tmp_path: Path) -> None:
    (prior,) = [load_model(trained.folder, "prior")]
    assert type(prior).__name__ == "WaveNet"
    bits = bits_per_code([prior], stage_codes(trained, "codes/held-out"))
    assert bits.shape == (4, 1) and (bits < 5).all()
    out = Run(tmp_path / "out", create=True)
    samples = sample(trained, [prior], SampleRequest(num=3, shapes=[(7,)]), out=out)
    decode(trained, load_model(trained.folder, "vqvae"), samples, out=out)
    files = sorted((out.folder / "wav").iterdir())
    assert [file.name for file in files] == ["0000000.wav", "0000001.wav", "0000002.wav"]
    for file in files:
        sound, rate = soundfile.read(file)
        assert rate == RATE and sound.shape == (700,)
    before = [file.read_bytes() for file in files]
    files[2].unlink()
    decode(trained, load_model(trained.folder, "vqvae"), samples, out=out)
    assert [file.read_bytes() for file in files] == before


def test_a_page_plays_the_recordings(trained: Run) -> None:
    page = Page(report(trained))
    assert not page.missing and "Bits per sample" in page.text["figures"]
    originals, reconstructions, samples, random_codes = 4, 4, 4, 4
    assert len(page.all("audio")) == originals + reconstructions + samples + random_codes
    assert all(sound["src"].startswith("data:audio/wav;base64,") for sound in page.all("audio"))


def test_converted_recordings_have_the_other_voice(trained: Run, tmp_path: Path) -> None:
    vqvae = load_model(trained.folder, "vqvae")
    held_out = reopen_parts(trained)["held-out"]
    out = Run(tmp_path / "out", create=True)
    convert(trained, vqvae, held_out, speaker="ben", out=out)
    made = load_audio(out.folder / "wav")
    assert made.names == held_out.names and made.rate == RATE
    assert made.lengths.tolist() == held_out.lengths.tolist()
    kept = (out.folder / "wav" / made.names[0]).read_bytes()
    (out.folder / "wav" / made.names[-1]).unlink()
    convert(trained, vqvae, held_out, speaker="ben", out=out)
    assert load_audio(out.folder / "wav").names == held_out.names
    assert (out.folder / "wav" / made.names[0]).read_bytes() == kept
    with pytest.raises(ValueError, match="speaker is 'carl'; want 'anna' or 'ben'"):
        convert(trained, vqvae, held_out, speaker="carl", out=out)
    with pytest.raises(ValueError, match="other settings"):
        convert(trained, vqvae, held_out, speaker="anna", out=out)
    (tmp_path / "twice").mkdir()
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / "twice" / name, np.zeros(RATE // 4), RATE)
    with pytest.raises(ValueError, match=r"several recordings would become a\.wav"):
        convert(
            trained,
            vqvae,
            load_audio(tmp_path / "twice"),
            speaker="ben",
            out=Run(tmp_path / "b", create=True),
        )


@pytest.mark.parametrize("format", ["wav", "npy", None], ids=["decode to wav", "decode to npy", "convert"])
def test_recordings_are_drawn_at_a_temperature(trained: Run, tmp_path: Path, format: str | None) -> None:
    """At 0 a waveform is the one whose every sample is the likeliest, whatever the noise."""
    vqvae = load_model(trained.folder, "vqvae")
    assert isinstance(vqvae, SpeechVQVAE)
    held_out = reopen_parts(trained)["held-out"]
    assert isinstance(held_out, Recordings)

    def make(out: Run, temperature: float) -> np.ndarray:
        if format is None:
            convert(trained, vqvae, held_out, speaker="ben", out=out, temperature=temperature)
        else:
            codes = encoded(vqvae, held_out)
            decode(trained, vqvae, codes, format=format, out=out, temperature=temperature)
        if format == "npy":
            return np.load(next((out.folder / "npy").glob("*.npy")))[0, 0]
        return load_audio(out.folder / "wav").recording(0)[0, 0].numpy()

    indices = vqvae.encode(held_out.recording(0))
    label = 1 if format is None else int(held_out.labels[0])
    likeliest = vqvae.decode(indices, labels=label, temperature=0, seed=5)[0, 0].numpy()
    out = Run(tmp_path / "likeliest", create=True)
    drawn = make(out, 0)[: held_out.lengths[0]]
    np.testing.assert_allclose(drawn, likeliest[: len(drawn)], atol=1e-4)
    usual = make(Run(tmp_path / "usual", create=True), 1)[: held_out.lengths[0]]
    assert not np.allclose(usual, drawn, atol=1e-3)
    with pytest.raises(ValueError, match="other settings"):
        make(out, 0.5)
    with pytest.raises(ValueError, match="temperature is -1; want a finite number, 0 or more"):
        make(out, -1)


def test_recordings_are_written_as_they_are_drawn(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the pieces, files have the bytes of whole waveforms; a failure leaves no hidden file."""
    monkeypatch.setattr("vqfast.models.speech_drawing.SAMPLES", 1000)
    vqvae = load_model(trained.folder, "vqvae")
    codes = encoded(vqvae, reopen_parts(trained)["held-out"])
    levels, labels = codes.read(range(codes.num))
    whole = decode_items(vqvae, levels, labels, range(codes.num))
    ends = ((levels[0] >= 0).sum(1) * vqvae.stride).tolist()
    out = Run(tmp_path / "out", create=True)
    decode(trained, vqvae, codes, out=out)
    files = sorted((out.folder / "wav").iterdir())
    expected = [wav_bytes(wave[0, :end].numpy(), RATE) for wave, end in zip(whole, ends, strict=True)]
    assert len(set(ends)) > 1 and [file.read_bytes() for file in files] == expected

    def full(*args: Any, **options: Any) -> None:
        raise OSError("disk full")

    broken = Run(tmp_path / "broken", create=True)
    monkeypatch.setattr(soundfile.SoundFile, "write", full)
    with pytest.raises(OSError, match="disk full"):
        decode(trained, vqvae, codes, out=broken)
    assert not list((broken.folder / "wav").iterdir())


def test_other_recordings_are_read_at_the_rate_of_the_run(trained: Run, tmp_path: Path) -> None:
    vqvae = load_model(trained.folder, "vqvae")
    (tmp_path / "ben").mkdir()
    soundfile.write(tmp_path / "ben" / "x.flac", np.zeros(8000), 16000)
    other = load_like_run(trained, vqvae, tmp_path)
    assert other.rate == RATE and other.shape == (1, 2000) and other.labels.tolist() == [1]


def test_completions(trained: Run, tmp_path: Path) -> None:
    vqvae, prior = load_model(trained.folder, "vqvae"), load_model(trained.folder, "prior")
    held_out = reopen_parts(trained)["held-out"]
    completion = Completion(vqvae, held_out, modality_of(trained), keep="start-half", draws=2)
    out = Run(tmp_path / "out", create=True)
    samples = sample(trained, [prior], completion.request([prior]), out=out)
    (indices,), _ = samples.all()
    assert indices.shape == (8, 20) and len(set(held_out.lengths.tolist())) == 2
    for number, length in enumerate((held_out.lengths // 100).tolist()):
        own, half = vqvae.encode(held_out.recording(number))[0], length // 2
        for drawn in indices[2 * number : 2 * number + 2]:  # a short one keeps half of itself, and ends
            assert torch.equal(drawn[:half], own[:half])
            assert (drawn[half:length] >= 0).all() and (drawn[length:] == -1).all()
    assert completion.picture(samples)[1:4] == b"PNG"
    decode(trained, vqvae, samples, out=out)
    files = sorted((out.folder / "wav").iterdir())
    assert [soundfile.info(file).frames for file in files] == held_out.lengths.repeat(2).tolist()


def test_rejection_judges_the_waveforms_that_are_written(trained: Run, tmp_path: Path) -> None:
    vqvae, prior = load_model(trained.folder, "vqvae"), load_model(trained.folder, "prior")
    judged: list[torch.Tensor] = []

    def classifier(items: torch.Tensor) -> torch.Tensor:
        judged.extend(items)
        even = (1e6 * items.double().sum((1, 2))).round() % 2 == 0  # half of all waveforms, however alike
        return torch.stack([even.float(), torch.full((len(items),), 0.5)], 1)

    rejection = Rejection(vqvae, classifier, 0.5, "sums that are even")
    out = Run(tmp_path / "out", create=True)
    request = SampleRequest(num=5, shapes=[(6,)], labels=0)
    samples = sample(trained, [prior], request, out=out, reject=rejection)
    assert num_rejected(out) > 0
    decode(trained, vqvae, samples, format="npy", out=out)
    (file,) = (out.folder / "npy").iterdir()
    for wave in torch.from_numpy(np.load(file)):
        assert any(torch.equal(wave, item) for item in judged)


def test_a_speech_model_wants_its_speakers_named(voices: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    run = Run(tmp_path / "run", create=True)
    options = {**SMALL, "num_classes": None}
    vqvae = train_speech(
        run, voices[0], model_options=options, training=Training(steps=1, batch_size=2), val=0.25
    )
    assert vqvae.num_classes is None and list(SPEAKERS) == run.settings("data")["classes"]
    with pytest.raises(ValueError, match="trained without speakers"):
        convert(run, vqvae, reopen_parts(run)["held-out"], speaker="ben", out=run)
