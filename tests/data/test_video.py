"""Videos of every kind, made by PyAV or Pillow."""

from __future__ import annotations

import io
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.moving import walk, write_video
from vqfast.data import Clips, Unreadable, load_video
from vqfast.data.video import gif_bytes, mp4_bytes
from vqfast.data.video.actions import read_actions
from vqfast.data.video.video_file import open_video

av = pytest.importorskip("av", reason="PyAV is not installed")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

FRAMES, ACTIONS = walk(40, seed=0)
SHARP = {"crf": "4"}


def pixels(clips: Clips, number: int = 0) -> np.ndarray:
    """A clip as ``(T, H, W, C)`` in 0..255."""
    return 255 * clips.batch([number])[0].permute(1, 2, 3, 0).numpy()


def far(found: np.ndarray, wanted: np.ndarray) -> float:
    """The mean difference of the frame that is farthest off."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).mean((1, 2, 3)).max())


@pytest.mark.parametrize(
    "name, codec, pix_fmt",
    [
        ("a.mp4", "libx264", "yuv444p"),
        ("a.MP4", "libx264", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("old.webm", "libvpx", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("b.avi", "mjpeg", "yuvj420p"),
        ("a.mkv", "ffv1", "yuv444p"),
        ("a.mov", "libx264", "yuv444p"),
        ("a.ts", "libx264", "yuv444p"),
        ("a.mpg", "mpeg1video", "yuv420p"),
        ("a.gif", "gif", "rgb8"),
    ],
)
def test_formats_give_the_frames_at_any_place(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    """Clips in any order are what reading from the start on gives, and what was written."""
    options = {"libx264": SHARP | {"g": "7"}, "libvpx-vp9": {"crf": "4", "b": "0", "g": "9", "cpu-used": "8"}}
    write_video(tmp_path / name, FRAMES, codec, pix_fmt=pix_fmt, options=options.get(codec))
    clips = load_video(tmp_path / name, frames=6, stride=2)
    assert len(clips) == 3 and clips.shape == (3, 6, 16, 24) and clips.rate == pytest.approx(12.5)
    whole = list(open_video(tmp_path / name).read(range(40)))
    assert len(whole) == 40
    for number in (2, 0, 1):
        own = slice(12 * number, 12 * number + 12, 2)
        assert far(pixels(clips, number), np.stack(whole[own])) == 0
        assert far(pixels(clips, number), FRAMES[own].astype(float)) < (24 if pix_fmt == "rgb8" else 10)


def test_stride_and_actions_go_frame_by_frame(tmp_path: Path) -> None:
    """Frames are counted, whatever time lies between them; each has its own action."""
    times = np.random.default_rng(0).integers(1, 400, 40).cumsum().tolist()
    write_video(tmp_path / "walk.mp4", FRAMES, times=times, options=SHARP)
    np.save(tmp_path / "walk.actions.npy", ACTIONS)
    clips = load_video(tmp_path, frames=5, stride=3)
    assert clips.places == [("walk.mp4", 0), ("walk.mp4", 15)]
    assert clips.actions is not None and clips.num_actions == 3
    for number, start in enumerate((0, 15)):
        assert far(pixels(clips, number), FRAMES[start : start + 15 : 3].astype(float)) < 3
        assert clips.actions[number].tolist() == ACTIONS[start : start + 15 : 3].tolist()
    assert clips.rate == pytest.approx(39 / (times[-1] - times[0]) * 1000 / 3, rel=0.05)


@pytest.mark.parametrize("turned", [90, -90, 180])
def test_turned_videos_stand_upright(tmp_path: Path, turned: int) -> None:
    write_video(tmp_path / "a.mp4", FRAMES, turned=turned, options=SHARP)
    upright = np.rot90(FRAMES, turned // 90, axes=(1, 2)).astype(float)
    assert far(pixels(load_video(tmp_path)), upright) < 3


def test_odd_sizes_are_read_and_written(tmp_path: Path) -> None:
    odd = FRAMES[:, :15, :21]
    write_video(tmp_path / "a.mp4", odd, options=SHARP)
    assert far(pixels(load_video(tmp_path)), odd.astype(float)) < 3
    (tmp_path / "a.mp4").write_bytes(mp4_bytes(odd, 25))
    found = pixels(load_video(tmp_path))
    assert found.shape == (40, 16, 22, 3) and far(found[:, :15, :21], odd.astype(float)) < 10


def test_grey_stays_grey(tmp_path: Path) -> None:
    grey = FRAMES.mean(3).round().astype(np.uint8)
    np.save(tmp_path / "a.npy", grey)
    assert load_video(tmp_path).shape == (1, 40, 16, 24)
    assert far(pixels(load_video(tmp_path)), grey[..., None].astype(float)) == 0
    write_video(tmp_path / "b.mkv", FRAMES, "ffv1", pix_fmt="gray")
    assert load_video(tmp_path).shape[0] == 1
    write_video(tmp_path / "c.mp4", FRAMES, options=SHARP)
    both = load_video(tmp_path)
    assert both.shape[0] == 3 and len(both) == 3
    as_grey = load_video(tmp_path, channels=1)
    luma = FRAMES @ np.array([0.299, 0.587, 0.114])
    assert far(pixels(as_grey, 2), luma[..., None]) < 3
    assert far(pixels(as_grey, 1), luma[..., None]) < 3


def test_sizes_are_squares_or_rectangles(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FRAMES)
    assert load_video(tmp_path, size=8).shape[2:] == (8, 8)
    assert load_video(tmp_path, size=(8, 12)).shape[2:] == (8, 12)
    halved = FRAMES.reshape(40, 8, 2, 12, 2, 3).mean((2, 4))
    assert far(pixels(load_video(tmp_path, size=(8, 12))), halved) < 6
    np.save(tmp_path / "b.npy", FRAMES[:, :, :20])
    with pytest.raises(ValueError, match=r"b\.npy is 20x16, a\.npy is 24x16; --size makes them equal"):
        load_video(tmp_path)
    assert load_video(tmp_path, size=[16, 16]).shape == (3, 40, 16, 16)


def test_folders_of_frames_are_ordered_by_number(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / "walk").mkdir(exist_ok=True)
        Image.fromarray(FRAMES[number]).save(tmp_path / "walk" / f"f{number + 1}.png")
        Image.fromarray(FRAMES[number + 12]).save(tmp_path / f"left_{number:04d}.png")
        Image.fromarray(FRAMES[number + 24]).save(tmp_path / f"right_{number:04d}.png")
    Image.fromarray(FRAMES[0]).save(tmp_path / "cover.png")
    (tmp_path / "walk.actions.csv").write_text("action\n" + "".join(f"{a}\n" for a in ACTIONS[:12]))
    clips = load_video(tmp_path / "walk")
    assert far(pixels(clips), FRAMES[:12].astype(float)) == 0
    assert clips.actions is not None and clips.actions[0].tolist() == ACTIONS[:12].tolist()
    (tmp_path / "walk.actions.csv").unlink()
    clips = load_video(tmp_path)
    assert clips.names == ["left", "right", "walk"] and clips.actions is None
    assert "left out 1 images without a number: cover.png" in clips.describe()
    assert far(pixels(clips, 1), FRAMES[24:36].astype(float)) == 0
    Image.fromarray(FRAMES[0][:8]).save(tmp_path / "walk" / "f5.png")
    with pytest.raises(Unreadable, match=r"walk: cannot read clip: f5\.png is 24x8; want 24x16, as f1\.png"):
        load_video(tmp_path / "walk").check()


def test_arrays_of_every_layout(tmp_path: Path) -> None:
    clips = FRAMES.reshape(5, 8, 16, 24, 3)
    actions, labels = ACTIONS.reshape(5, 8), np.array([0, 1, 0, 1, 2])
    np.savez_compressed(tmp_path / "a.npz", clips=clips, actions=actions, labels=labels)
    np.save(tmp_path / "b.npy", np.moveaxis(clips, 4, 2))
    np.save(tmp_path / "b.actions.npy", actions)
    for name in ("a.npz", "b.npy"):
        found = load_video(tmp_path / name, frames=4)
        assert len(found) == 10 and found.actions is not None
        assert far(pixels(found, 3), clips[1, 4:].astype(float)) == 0
        assert found.actions[3].tolist() == actions[1, 4:].tolist()
    assert load_video(tmp_path / "a.npz").labels.tolist() == labels.tolist()
    np.save(tmp_path / "b.npy", clips.astype(np.float32))
    with pytest.raises(Unreadable, match="it has dtype float32; want uint8"):
        load_video(tmp_path / "b.npy")


def test_broken_and_cut_off_files_are_named(tmp_path: Path) -> None:
    good = write_video(tmp_path / "good.mp4", FRAMES, options=SHARP).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("#EXTM3U\n#EXTINF:10,\ngood.mp4\n#EXT-X-ENDLIST\n")
    for name, codec, pix_fmt in (("a.webm", "libvpx", "yuv420p"), ("a.avi", "mjpeg", "yuvj420p")):
        whole = write_video(tmp_path / "whole" / name, FRAMES, codec, pix_fmt=pix_fmt).read_bytes()
        (tmp_path / f"cut-{name}").write_bytes(whole[:-300])
    fast = write_video(tmp_path / "whole/fast.mp4", FRAMES, options=SHARP, muxing={"movflags": "faststart"})
    (tmp_path / "cut-fast.mp4").write_bytes(fast.read_bytes()[:-300])
    (tmp_path / "cut.gif").write_bytes(gif_bytes(FRAMES, 10)[:-300])
    np.save(tmp_path / "short.npy", FRAMES)
    np.save(tmp_path / "short.actions.npy", ACTIONS[:-1])
    (tmp_path / "link.mp4").symlink_to("nowhere.mp4")
    bad = {
        "cut.mp4",
        "empty.mp4",
        "text.mp4",
        "cut-a.webm",
        "cut-a.avi",
        "cut-fast.mp4",
        "cut.gif",
        "link.mp4",
        "short.npy",
    }
    with pytest.raises(Unreadable, match=r"cut off.*--skip-bad") as refused:
        load_video(tmp_path)
    assert {Path(name).name for name in refused.value.bad} == bad
    clips = load_video(tmp_path, skip_bad=True)
    assert clips.findings["bad"].keys() == bad and len(clips) == 4
    assert "short.npy: " not in str(clips.findings["bad"]["cut.mp4"])
    assert load_video(tmp_path, skip_bad=clips.findings["bad"]).names == clips.names


def test_damage_inside_a_file_shows_when_it_is_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, FRAMES.shape, np.uint8)
    whole = write_video(tmp_path / "a.mp4", noise, options=SHARP | {"g": "5"}).read_bytes()
    place = len(whole) // 2
    (tmp_path / "b.mp4").write_bytes(whole[:place] + bytes(3000) + whole[place + 3000 :])
    clips = load_video(tmp_path, frames=10)
    with pytest.raises(Unreadable, match=r"b\.mp4: cannot read clip") as refused:
        clips.check()
    assert list(refused.value.bad) == [str(tmp_path / "b.mp4")]
    assert set(load_video(tmp_path, frames=10, skip_bad=True).names) == {"a.mp4"}


def test_videos_without_a_clip_are_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FRAMES)
    np.save(tmp_path / "b.npy", FRAMES[:7])
    assert load_video(tmp_path, frames=8).names == ["a.npy"] * 5
    assert "left out 1 shorter than 8 frames: b.npy" in load_video(tmp_path, frames=8).describe()
    with pytest.raises(ValueError, match="videos of 7 to 40 frames; --frames cuts equal clips"):
        load_video(tmp_path)
    with pytest.raises(ValueError, match=r"has no video of 41 frames"):
        load_video(tmp_path, frames=41)
    with pytest.raises(ValueError, match=r"has no video in it; want mp4"):
        load_video(tmp_path, skip_bad={"a.npy": "", "b.npy": ""})


def test_actions_of_all_or_none(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FRAMES)
    np.save(tmp_path / "b.npy", FRAMES)
    np.save(tmp_path / "a.actions.npy", ACTIONS)
    with pytest.raises(ValueError, match=r"b\.npy has no actions.*want b\.actions\.npy or b\.actions\.csv"):
        load_video(tmp_path)
    (tmp_path / "b.actions.csv").write_text(",".join(map(str, ACTIONS)))
    assert load_video(tmp_path).actions.tolist() == [ACTIONS.tolist()] * 2
    for text, said in (("0\n-1\n", "action -1"), ("0\n1.5\n", "want integers"), ("a\n", "want integers")):
        (tmp_path / "b.actions.csv").write_text(text)
        with pytest.raises(ValueError, match=said):
            read_actions(tmp_path / "b.actions.csv")


def test_a_split_keeps_videos_whole(tmp_path: Path) -> None:
    for number in range(8):
        np.save(tmp_path / f"{number}.npy", FRAMES)
    clips = load_video(tmp_path, frames=8)
    train, held_out = clips.split(0.25, seed=3)
    assert len(held_out) == 10 and len(train) == 30 and not set(train.names) & set(held_out.names)
    again = clips.split(0.25, seed=3)
    assert [part.fingerprint for part in again] == [train.fingerprint, held_out.fingerprint]
    train, held_out = load_video(tmp_path / "0.npy", frames=8).split(0.2, seed=3)
    assert held_out.places == [("0.npy", 32)] and [place for _, place in train.places] == [0, 8, 16, 24]


def test_classes_are_folders(tmp_path: Path) -> None:
    for name in ("run/a", "walk/b", "walk/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{name}.npy", FRAMES)
    clips = load_video(tmp_path, frames=20)
    assert clips.labels.tolist() == [0, 0, 1, 1, 1, 1] and clips.findings["classes"] == ["run", "walk"]
    assert load_video(tmp_path / "walk").labels is None
    (tmp_path / "run").rename(tmp_path / ".run")
    assert load_video(tmp_path).labels is None
    assert load_video(tmp_path, classes=["run", "walk"]).labels.tolist() == [1, 1]
    (tmp_path / ".run").rename(tmp_path / "train")
    (tmp_path / "walk").rename(tmp_path / "test")
    with pytest.raises(ValueError, match="has the folders test, train; want one of them"):
        load_video(tmp_path)


def test_touched_files_have_another_stamp(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FRAMES)
    np.save(tmp_path / "a.actions.npy", ACTIONS)
    before = load_video(tmp_path, frames=8)
    stamp, fingerprint = before.stamp, before.fingerprint
    np.save(tmp_path / "a.actions.npy", 1 - ACTIONS.clip(0, 1))
    after = load_video(tmp_path, frames=8)
    assert stamp != after.stamp and fingerprint != after.fingerprint
    assert load_video(tmp_path, frames=8, stride=2).fingerprint != after.fingerprint


def test_the_memory_for_clips_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", FRAMES)
    clips = load_video(tmp_path, frames=4)
    monkeypatch.setattr("vqfast.data.video.dataset.KEPT", 3 * FRAMES[:4].nbytes)
    first = clips.batch(range(10))
    assert list(clips._kept) == [7, 8, 9]
    assert torch.equal(clips.batch([9, 0, 9, 7]), first[[9, 0, 9, 7]]) and len(clips._kept) == 3


@pytest.mark.parametrize("rate", [25.0, 30000 / 1001, 7.5, 0.5])
def test_written_files_keep_the_rate(tmp_path: Path, rate: float) -> None:
    (tmp_path / "a.mp4").write_bytes(mp4_bytes(FRAMES, rate))
    assert mp4_bytes(FRAMES, rate) == (tmp_path / "a.mp4").read_bytes()
    clips = load_video(tmp_path / "a.mp4")
    assert clips.rate == pytest.approx(rate) and far(pixels(clips), FRAMES.astype(float)) < 10
    with Image.open(io.BytesIO(gif_bytes(FRAMES, rate))) as picture:
        shown = 0
        for number in range(picture.n_frames):
            picture.seek(number)
            shown += picture.info["duration"]
    assert picture.n_frames <= 40 and shown == pytest.approx(40 / rate * 1000, abs=10)


def test_times_of_television_are_kept(tmp_path: Path) -> None:
    write_video(tmp_path / "a.webm", FRAMES, "libvpx", pix_fmt="yuv420p", rate=Fraction(30000, 1001))
    assert load_video(tmp_path).rate == pytest.approx(30000 / 1001, rel=1e-3)


def test_arguments_are_checked(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FRAMES)
    for options, said in (
        ({"frames": 0}, "frames is 0; want a positive"),
        ({"stride": 0}, "stride is 0; want a positive"),
        ({"size": (1, 2, 3)}, "size is .*; want an integer, or height and width"),
        ({"channels": 2}, "channels is 2; want 1 or 3"),
        ({"depth": 8}, "depth is 8; want None"),
    ):
        with pytest.raises(ValueError, match=said):
            load_video(tmp_path, **options)
    with pytest.raises(TypeError, match="numbers is float64"):
        load_video(tmp_path).batch([0.5])
    assert load_video(tmp_path).batch([]).shape == (0, 3, 40, 16, 24)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r"vqfast\[video\]"):
        load_video(tmp_path)
