"""Recordings through every command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cli.command import run
from tests.voices import RATE, write_voices

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
pytest.importorskip("soxr", reason="soxr is not installed")

SMALL = (
    "--crop 0.1 --val 0.25 --batch-size 4 --encoder-strides 25 4 --num-mels 8 --hidden-channels 8 "
    "--num-residual-blocks 1 --wavenet-channels 8 --wavenet-layers 3 --num-embeddings 8 --embedding-dim 4"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    write_voices(folder / "voices", recordings=4, vowels=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(f"train-speech --data voices --out run --steps 2 {SMALL}") == 0
        assert run("encode --run run") == 0
        assert run("train-prior --run run --steps 2 --channels 4 --num-layers 2") == 0
    return folder


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def test_a_folder_of_recordings_through_every_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sample --run run --out new --num 2 --shape 3") == 0
    sound, rate = soundfile.read("new/wav/0000001.wav")
    assert rate == RATE and sound.shape == (300,)
    assert run("decode --run run --codes run/codes/held-out --out decoded") == 0
    assert len(list(Path("decoded/wav").iterdir())) == 2
    assert run("likelihood --run run --out bits.npy") == 0
    assert np.load("bits.npy").shape == (2,)
    assert run("reconstruct --run run --out pairs.png --num 1") == 0
    assert Path("pairs.png").read_bytes()[1:4] == b"PNG"
    assert "bits_per_sample" in capsys.readouterr().out
    assert run("encode --run run --data voices/anna --out others") == 0
    assert run("convert --run run --speaker ben --data voices/anna --out converted") == 0
    assert "4 recordings as ben in converted/wav" in capsys.readouterr().out
    names = sorted(path.name for path in Path("converted/wav").iterdir())
    assert names == ["0.wav", "1.wav", "2.wav", "3.wav"]
    assert soundfile.info("converted/wav/0.wav").frames == soundfile.info("voices/anna/0.wav").frames
    assert run("sample --run run --out ends --complete held-out --keep start-half --draws 1") == 0


@pytest.mark.parametrize(
    "line, said",
    [
        ("convert --run run --speaker carl --out x", "speaker is 'carl'; want 'anna' or 'ben'"),
        (
            "encode --run run --data voices --out x --size 8",
            "recordings: got an unexpected keyword argument 'size'",
        ),
        ("train-speech --data voices --out x --crop 0", "crop is 0.0; want"),
        ("train-speech --data voices --out x --val 1", "val is 1.0; want"),
        ("train-speech --data voices --out x --model paper", "model is 'paper'; want 'paper-speech' or"),
        ("train-speech --data voices --out x --mel-weight 1", "want 0 without num_mels"),
        ("train-prior --run run --prior gated", "prior is 'gated'; want 'wavenet'"),
        ("sample --run run --out x --format grid", "format is 'grid'; want 'wav'"),
        ("sample --run run --out x --complete held-out", "keep is 'top-half'; want start-half"),
        ("report --run run --out x", "run is a run of recordings; want one of images"),
        ("picture --run run --of codebook --out x", "run is a run of recordings; want one of images"),
        ("train-speech --data nowhere --out x", "nowhere'; no such file or folder"),
    ],
)
def test_wrong_words_are_answered(
    here: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    assert run(line) != 0
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not Path("x").exists()
