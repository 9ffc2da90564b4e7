"""Clips through every command, on MP4 files whose actions are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.command import run
from tests.moving import walk, write_video, write_walks
from vqfast.data import load_video

pytest.importorskip("av", reason="PyAV is not installed")

SMALL = "--hidden-channels 8 --num-residual-blocks 0 --num-embeddings 8 --embedding-dim 4"
PRIOR = "--channels 8 --num-layers 2 --head-channels 8 --context-channels 8 --context-blocks 1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("video")
    write_walks(folder / "clips", 4, frames=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        training = "--frames 8 --val 0.25 --steps 3 --batch-size 3"
        assert run(f"train-video --data clips --out run {training} {SMALL}") == 0
        assert run("encode --run run") == 0
        assert run(f"train-prior --run run --steps 2 --batch-size 2 {PRIOR}") == 0
    return folder


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def arrays(folder: str) -> dict[str, Any]:
    with np.load(f"{folder}/samples/00000.npz") as file:
        return dict(file)


def test_a_folder_of_clips_through_every_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load("run/codes/held-out/00000.npz") as codes:
        held_out = dict(codes)
    assert held_out["indices"].shape == (2, 8, 4, 6) and held_out["actions"].shape == (2, 8)
    assert run("sample --run run --out new --num 3") == 0
    assert sorted(path.name for path in Path("new/mp4").iterdir()) == [f"000000{i}.mp4" for i in range(3)]
    made = load_video("new/mp4")
    assert made.shape == (3, 8, 16, 24) and made.rate == 25
    assert (arrays("new")["actions"] == held_out["actions"][[0, 1, 0]]).all()
    assert run("decode --run run --codes new/samples --out gifs --format gif") == 0
    assert load_video("gifs/gif", frames=8).shape == (3, 8, 16, 24)
    assert run("decode --run run --codes new/samples --out plain --format npy") == 0
    assert np.load("plain/npy/0000000.npy").shape == (3, 8, 16, 24, 3)
    assert run("likelihood --run run --out bits.npy") == 0
    assert run("likelihood --run run --codes new/samples --out drawn.npy") == 0
    assert np.load("bits.npy").shape == (2,) and np.load("drawn.npy").shape == (3,)
    assert run("reconstruct --run run --out pairs.png") == 0
    assert "2 clips: mse " in capsys.readouterr().out
    assert run("encode --run run --data clips/0.mp4 --out others --stride 2") == 0
    assert "1 clip encoded" in capsys.readouterr().out
    assert run("sample --run run --out parts --complete held-out --keep left-half --draws 1") == 0
    assert (arrays("parts")["indices"][:, :, :, :3] == held_out["indices"][:, :, :, :3]).all()
    assert run("report --run run --out page.html") == 0
    assert "data:image/gif;base64," in Path("page.html").read_text()


def test_samples_go_on_from_given_frames(here: Path, tmp_path: Path) -> None:
    with np.load("run/codes/held-out/00000.npz") as codes:
        held_out = dict(codes)
    assert run("sample --run run --out on --given 5") == 0
    on = arrays("on")
    assert on["indices"].shape == (2, 8, 4, 6)
    assert (on["indices"][:, :5] == held_out["indices"][:, :5]).all()
    assert (on["actions"] == held_out["actions"]).all()
    assert Path("on/completions.png").read_bytes()[1:4] == b"PNG"
    assert run("sample --run run --out long --given 5 --data clips --frames 12 --actions 2 --draws 2") == 0
    assert arrays("long")["indices"].shape == (16, 12, 4, 6)
    own = load_video("clips", frames=8).actions[:, :5].repeat(2, axis=0)
    assert (arrays("long")["actions"][:, :5] == own).all() and (arrays("long")["actions"][:, 5:] == 2).all()
    (tmp_path / "a.csv").write_text("0\n1\n2\n")
    assert run(f"sample --run run --out file --given 5 --actions {tmp_path}/a.csv") == 0
    assert arrays("file")["actions"][:, 5:].tolist() == [[0, 1, 2]] * 2
    np.save(tmp_path / "a.npy", np.arange(20).reshape(2, 10) % 3)
    assert run(f"sample --run run --out each --num 2 --frames 10 --actions {tmp_path}/a.npy") == 0
    assert (arrays("each")["actions"] == np.arange(20).reshape(2, 10) % 3).all()


def test_one_film_and_a_model_that_halves_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a single video the end is held out; a grid of codes stands for two frames, and for their actions."""
    monkeypatch.chdir(tmp_path)
    write_walks(tmp_path, 1, frames=40)
    training = (
        "--model paper-video-halved --num-downsamplings 1 --frames 8 --val 0.2 --steps 2 --batch-size 2"
    )
    assert run(f"train-video --data 0.mp4 --out run --size 8 12 {training} {SMALL}") == 0
    assert run("encode --run run") == 0
    assert run(f"train-prior --run run --steps 2 {PRIOR}") == 0
    with np.load("run/codes/held-out/00000.npz") as codes:
        assert codes["indices"].shape == (1, 4, 4, 6)
        own = walk(40, 0)[1][32:]
        assert codes["actions"].tolist() == [(3 * own[::2] + own[1::2]).tolist()]
    assert run("sample --run run --out on --given 4 --frames 10 --actions 1") == 0
    assert arrays("on")["actions"][:, 2:].tolist() == [[4, 4, 4]]
    assert load_video("on/mp4").shape == (3, 10, 8, 12)
    assert run("sample --run run --out x --given 3") == 2


def test_clips_without_actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_walks(tmp_path / "clips", 2, frames=8, actions=False)
    assert (
        run(f"train-video --data clips --out run --frames 4 --val 0.5 --steps 2 --batch-size 2 {SMALL}") == 0
    )
    assert run("encode --run run") == 0
    assert run(f"train-prior --run run --steps 2 {PRIOR}") == 0
    assert run("sample --run run --out on --given 3 --frames 6") == 0
    assert "actions" not in arrays("on") and arrays("on")["indices"].shape == (2, 6, 4, 6)


@pytest.mark.parametrize(
    "line, said",
    [
        ("train-video --data clips --out x --model paper", "model is 'paper'; want 'paper-video' or"),
        ("train-video --data clips --out x --frames 17", "no video of 17 frames; want fewer --frames"),
        (
            "train-video --data clips --out x --frames 8 --val 0.25 --size 10",
            "size is 10; want a multiple of 4",
        ),
        ("train-video --data nowhere --out x", "nowhere'; no such file or folder"),
        ("train-video --data bad --out x", "cut.mp4: cannot read video: it is cut off"),
        (
            "encode --run run --data clips --out x --crop 8",
            "crop is given; want none: clips are read without",
        ),
        ("train-prior --run run --prior gated", "prior is 'gated'; want 'clips'"),
        ("sample --run run --out x --given 8", "given is 8; want an integer in 1..7"),
        ("sample --run run --out x --given 2 --frames 9", "want --actions"),
        ("sample --run run --out x --actions 3", "actions is 3; want an integer in 0..2"),
        ("sample --run run --out x --actions left", "actions is 'left'; want an action's number, or"),
        ("sample --run run --out x --given 2 --shape 8 4 6", "--shape and --given exclude each other"),
        ("sample --run run --out x --data clips", "--data goes with --given"),
        ("sample --run run --out x --complete held-out --given 2", "--complete goes without --given"),
        ("sample --run run --out x --complete held-out --keep first", "keep is 'first'; want start-half"),
    ],
)
def test_wrong_words_are_answered(
    here: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    if "bad" in line:
        Path("bad").mkdir()
        Path("bad/cut.mp4").write_bytes(write_video(Path("whole.mp4"), walk(8, 0)[0]).read_bytes()[:-40])
    assert run(line) != 0
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not Path("x").exists()
