"""Recordings through every command."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cli.command import run
from tests.voices import RATE, write_voices
from vqfast.data import Recordings
from vqfast.pipeline import Run, reopen_parts

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
    (folder / "other" / "carl").mkdir(parents=True)
    soundfile.write(folder / "other" / "carl" / "x.wav", np.zeros(500), RATE)
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
    assert run("reconstruct --run run --out pairs.wav") == 0
    heard, rate = soundfile.read("pairs.wav")
    originals = reopen_parts(Run("run", lock=False))["held-out"]
    assert isinstance(originals, Recordings)
    assert rate == RATE and len(heard) == 2 * (originals.lengths.sum() + 2 * round(0.5 * RATE))
    first, length = originals.recording(0)[0, 0].numpy(), int(originals.lengths[0])
    np.testing.assert_allclose(heard[:length], first, atol=1e-4)
    assert not heard[length:][: round(0.5 * RATE)].any() and not heard[-round(0.5 * RATE) :].any()
    alone, _ = soundfile.read("decoded/wav/0000000.wav")
    again = heard[length + round(0.5 * RATE) :][:length]
    np.testing.assert_array_equal(again, alone[:length])
    assert run("encode --run run --data voices/anna --out others") == 0
    assert run("convert --run run --speaker ben --data voices/anna --temperature 0.5 --out converted") == 0
    assert "4 recordings as ben in converted/wav" in capsys.readouterr().out
    names = sorted(path.name for path in Path("converted/wav").iterdir())
    assert names == ["0.wav", "1.wav", "2.wav", "3.wav"]
    assert soundfile.info("converted/wav/0.wav").frames == soundfile.info("voices/anna/0.wav").frames
    assert run("sample --run run --out ends --complete held-out --keep start-half --draws 1") == 0
    page = Path("run/report.html").read_text()
    assert run("report --run run --out page.html") == 0
    assert "<audio" in page and "bits per code" in page.lower() and 'class="missing"' not in page


def test_pictures_show_spectrograms(here: Path) -> None:
    import PIL.Image

    assert run("picture --run run --of codebook --num 4 --out codebook.png") == 0
    assert run("picture --run run --of random-codes --num 2 --out random.png") == 0
    sizes = {}
    for name in ("codebook", "random"):
        with PIL.Image.open(f"{name}.png") as picture:
            sizes[name] = picture.size
    wide = 2100 // 32 + 1, 1200 // 32 + 1  # windows of 21 codes, and of as much as the longest recording has
    assert all(2 * count <= sizes[name][0] for name, count in zip(sizes, wide, strict=True))
    assert 512 <= sizes["codebook"][1] < 600 and 256 <= sizes["random"][1] < 300


def test_recordings_whose_length_the_stride_does_not_divide(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name, length in (("anna/a", 801), ("ben/b", 499), ("ben/c", 1)):
        Path("odd", name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(f"odd/{name}.wav", rng.uniform(-0.5, 0.5, length), RATE)
    assert run("reconstruct --run run --data odd --out odd.png") == 0
    assert run("sample --run run --complete odd --keep end-0.3 --draws 2 --out ended") == 0
    frames = [soundfile.info(f"ended/wav/{i:07d}.wav").frames for i in range(6)]
    assert frames == [900, 900, 500, 500, 100, 100]
    assert run("encode --run run --data odd --out odd-codes") == 0
    assert run("decode --run run --codes odd-codes/codes/all --out odd-decoded") == 0
    assert soundfile.info("odd-decoded/wav/0000001.wav").frames == 500


def test_codes_are_compared_with_phones(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        labels = "".join(f"{i * 1000000} {(i + 1) * 1000000} {'ab'[i % 2]}\n" for i in range(3))
        Path("phones").mkdir(exist_ok=True)
        Path(f"phones/{number}.lab").write_text(labels if number else "0 1000000 a\n")
    assert run("codes --run run --phones phones --data voices/anna --out table.csv") == 0
    said = capsys.readouterr().out
    head, *lines = [line.split(",") for line in Path("table.csv").read_text().splitlines()]
    assert head == ["code", "count", "phone", "share", "a", "b"] and len(lines) == 8
    counts = np.array([line[4:] for line in lines], int)
    lengths = [soundfile.info(f"voices/anna/{i}.wav").frames // 100 for i in range(4)]
    expected = 4 + sum(min(length, 12) for length in lengths[1:])
    assert counts.sum() == expected and f"{expected} codes of 4 of 4 recordings" in said
    assert [int(line[1]) for line in lines] == counts.sum(1).tolist()
    assert run("codes --run run --phones phones --data voices/anna --out table.csv") != 0


def test_what_cannot_be_read_is_left_out_where_one_asks_for_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("worn").mkdir()
    soundfile.write("worn/good.wav", np.zeros(900), RATE)
    Path("worn/bad.wav").write_bytes(b"no recording")
    Path("worn/good.lab").write_text("0 5000000 a\n")
    for line in (
        "convert --run run --speaker ben --out as-ben",
        "codes --run run --phones worn --out worn.csv",
    ):
        assert run(f"{line} --data worn") != 0
        assert "--skip-bad leaves such files out" in capsys.readouterr().err
        assert run(f"{line} --data worn --skip-bad") == 0
        assert "left out bad.wav" in capsys.readouterr().err
    assert Path("as-ben/wav/good.wav").is_file() and ",a" in Path("worn.csv").read_text()


def test_a_run_that_leaves_out_what_cannot_be_read_does_so_with_other_data(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("voices", "partly")
    Path("partly/anna/bad.wav").write_bytes(b"no recording")
    assert run(f"train-speech --data partly --out lenient --steps 1 --skip-bad {SMALL}") == 0
    assert run("encode --run lenient") == 0
    assert run("train-prior --run lenient --steps 1 --channels 4 --num-layers 2") == 0
    capsys.readouterr()
    for line in (
        "convert --run lenient --speaker ben --data partly --out lenient-ben",
        "encode --run lenient --data partly --out lenient-codes",
        "sample --run lenient --complete partly --draws 1 --keep start-half --out lenient-ends",
    ):
        assert run(line) == 0
        assert "left out anna/bad.wav" in capsys.readouterr().err
    assert run("convert --run run --speaker ben --data partly --out strict-ben") != 0


def test_another_folder_is_held_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("apart/anna").mkdir(parents=True)
    soundfile.write("apart/anna/x.flac", np.zeros(3 * RATE), 3 * RATE)
    options = SMALL.replace("--val 0.25", "--val apart")
    assert run(f"train-speech --data voices --out apart-run --steps 1 {options}") == 0
    assert run("encode --run apart-run") == 0
    out = capsys.readouterr().out
    assert "8 recordings encoded in apart-run/codes/train" in out
    assert "1 recording encoded in apart-run/codes/held-out" in out
    codes = np.load("apart-run/codes/held-out/00000.npz")
    assert codes["indices"].shape == (1, 40) and codes["labels"].tolist() == [0]


@pytest.mark.parametrize(
    "line, said",
    [
        ("convert --run run --speaker carl --out x", "speaker is 'carl'; want 'anna' or 'ben'"),
        (
            "encode --run run --data voices --out x --size 8 --crop 3",
            "crop and size are given; want none: recordings are read without",
        ),
        ("encode --run run --data voices --out x --depth 8", "depth is 8; want None: recordings of every"),
        (
            "codes --run run --phones voices --out x.csv",
            "phones is voices, which has none for the recordings",
        ),
        ("codes --run run --phones voices --skip-bad --out x.csv", "--skip-bad goes with --data"),
        ("convert --run run --speaker ben --skip-bad --out x", "--skip-bad goes with --data"),
        ("convert --run run --speaker ben --temperature -1 --out x", "temperature is -1.0; want"),
        ("decode --run run --codes run/codes/held-out --temperature nan --out x", "temperature is nan; want"),
        ("codes --run run --phones nowhere --out x", "out is x; want a name that ends in .csv"),
        ("codes --run run --phones nowhere --out x.csv", "nowhere'; no such file or folder"),
        ("train-speech --data voices --val other --out x", "no labels: carl is no speaker of the run"),
        ("train-speech --data voices --out x --crop 0", "crop is 0.0; want"),
        ("train-speech --data voices --out x --val 1", "val is 1.0; want"),
        ("train-speech --data voices --out x --model paper", "model is 'paper'; want 'paper-speech' or"),
        ("train-speech --data voices --out x --mel-weight 1", "want 0 without num_mels"),
        ("train-prior --run run --prior gated", "prior is 'gated'; want 'wavenet'"),
        ("sample --run run --out x --format grid", "format is 'grid'; want 'wav'"),
        ("sample --run run --out x --complete held-out", "keep is 'top-half'; want start-half"),
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
