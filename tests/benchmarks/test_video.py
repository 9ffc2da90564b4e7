"""The suite ``video`` in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import video, video_game, video_runs
from benchmarks.core import AbsentError


def squares(clips: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """A square that actions move: uint8 ``(N, T, 48, 64, 3)`` and actions ``(N, T)``."""
    rng = np.random.default_rng(0)
    actions = rng.integers(3, size=(clips, frames))
    pixels = np.zeros((clips, frames, 48, 64, 3), np.uint8)
    for clip, frame in np.ndindex(clips, frames):
        x = 28 + 2 * int((actions[clip, : frame + 1] - 1).sum())
        pixels[clip, frame, 20:28, x % 56 : x % 56 + 8] = 200
    return pixels, actions


def test_tables_pictures_and_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(video_runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(video, "RESULTS", tmp_path)
    monkeypatch.setattr(video, "QUICK", video_runs.Size(3, 2, 4, 2, 2, 2))
    clips, actions = squares(3, 36)
    np.savez(tmp_path / "game.npz", clips=clips, actions=actions)
    (tmp_path / "clips").mkdir()
    np.save(tmp_path / "clips" / "walk.npy", clips[:2].reshape(-1, 48, 64, 3))
    found = video.findings(full=False, folder=tmp_path)
    errors, bits, real = found.values()
    assert errors["reconstruction of the true frame"].keys() == {
        f"after {n}" for n in ("1 frame", "5 frames", "10 frames")
    }
    assert list(bits) == ["action right", "action wrong", "action not told"]
    assert list(real) == ["frames before", "each frame alone"]
    with Image.open(tmp_path / "video-go-forward.gif") as gif:
        assert gif.size == (2 * 64, 48)  # of two windows, side by side
    assert (tmp_path / "video-actions.png").is_file()
    monkeypatch.setattr(video_runs, "fitted", None)  # nothing is trained again
    assert video.findings(full=False, folder=tmp_path) == found
    capsys.readouterr()


def test_copies_are_what_psnr_says() -> None:
    """Of frames that stand still the copy has no error but the reconstruction's."""
    torch.manual_seed(0)
    model = video_runs.VQVAE.named("paper-video", **video_runs.MODEL).eval()
    prior = video_runs.ClipPrior(512, num_actions=3, **video_runs.PRIOR).eval()
    clips, _ = squares(1, 1)
    still = video.as_frames(clips).expand(1, 16, -1, -1, -1)
    found = video.psnr(model, prior, still, torch.zeros(1, 16, dtype=torch.int64), 1)
    assert found["last frame copied"][1] == float("inf")
    assert found["its reconstruction"] == found["reconstruction of the true frame"]
    moved = video.as_frames(squares(1, 16)[0])
    error = ((moved[0, 5].double() - moved[0, 10].double()) / 255).square().mean()
    found = video.psnr(model, prior, moved, torch.zeros(1, 16, dtype=torch.int64), 1)
    assert found["last frame copied"][5] == pytest.approx(-10 * float(error.log10()), abs=1e-4)


def test_a_training_that_is_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_runs, "STEPS_OF_A_PART", 3)

    def train(part: Path, stop: int) -> Tensor:
        torch.manual_seed(0)
        model, left = torch.nn.Linear(4, 1), [stop]

        def loss() -> Tensor:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return (model(torch.randn(5, 4)) - 1).square().mean()

        video_runs.fitted(model, 10, 0.1, loss, part)
        return model.weight.detach()

    straight = train(tmp_path / "a.part", 10)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b.part", 8)
    assert torch.equal(train(tmp_path / "b.part", 4), straight)  # from step 6 on


def test_a_game_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vizdoom", None)
    with pytest.raises(AbsentError, match="vizdoom"):
        video_game.read_game(tmp_path / "game.npz", 2)
    assert video.findings(full=False, folder=tmp_path) == {}
    assert "video: the package vizdoom" in capsys.readouterr().out
