"""Trainings that go on with more steps, and lengths in epochs."""

from __future__ import annotations

import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor

from tests.pipeline.trained import files, train, train_its_prior
from vqfast.pipeline import Run, loop
from vqfast.saving.storage import read_json

STEPS = 20


class Killed(BaseException):
    pass


def contents(run: Run) -> dict[str, bytes]:
    return {str(Path(name).relative_to(run.folder)): data for name, (_, data) in files(run.folder).items()}


@pytest.mark.parametrize("finished", [True, False])
def test_more_steps_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    """Killed anywhere, the longer training ends with the bytes of an undisturbed longer one."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    numbers = loop.batch_numbers
    seen: list[int] = []

    def train_until(last: int | None, run: Run, **training: Any) -> None:
        """Trains; the process dies as step ``last`` begins."""

        def watched(num: int, batch_size: int, step: int, seed: int) -> Tensor:
            if step == last:
                raise Killed
            seen.append(step)
            return numbers(num, batch_size, step, seed)

        monkeypatch.setattr(loop, "batch_numbers", watched)
        with pytest.raises(Killed) if last else nullcontext():
            train(run, data, **training)

    whole, killed = (Run(tmp_path / name, create=True) for name in ("whole", "killed"))
    for run in (whole, killed):
        train_until(None if finished else 8, run)
    begun = contents(whole)
    seen.clear()
    train_until(None, whole, steps=STEPS)
    assert seen == list(range(12 if finished else 8, STEPS))
    assert whole.settings("vqvae")["steps"] == STEPS
    history = read_json(whole.folder / "vqvae.history.json")
    assert history["step"] == ([0, 10, 11, 19] if finished else [0, 10, 19])
    if finished:
        assert contents(whole)["vqvae.safetensors"] != begun["vqvae.safetensors"]
    for last in (14, 17):
        train_until(last, killed, steps=STEPS)
        assert not (killed.folder / "vqvae.safetensors").exists()
        with pytest.raises(ValueError, match="steps was 20, now 12; use another"):
            train(killed, data)
    train_until(None, killed, steps=STEPS)
    assert contents(killed) == contents(whole)
    with pytest.raises(ValueError, match="steps was 20, now 12; use another"):
        train(killed, data)
    with pytest.raises(ValueError, match=r"lr was 0\.001, now 0\.1, steps was 20, now 30"):
        train(killed, data, steps=30, lr=0.1)


@pytest.mark.parametrize(
    "options",
    [{}, {"ema": 0.9, "optimizer": "adamw", "weight_decay": 0.1, "clip": 0.1}, {"val_every": 5}],
    ids=["plain", "averages", "best"],
)
def test_more_steps_are_those_of_a_longer_training(
    data: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """At a constant rate nothing tells where the shorter trainings ended: moments and averages are kept."""
    at_once, raised = (Run(tmp_path / name, create=True) for name in ("at-once", "raised"))
    for steps in (6, 11, STEPS):  # val_every measures the last step of each as well, none of which is best
        train(raised, data, steps=steps, **options)
    train(at_once, data, steps=STEPS, **options)
    one, two = contents(at_once), contents(raised)
    assert one["vqvae.safetensors"] == two["vqvae.safetensors"]
    moments = [load(found["vqvae.state.safetensors"]) for found in (one, two)]
    names = [name for name in moments[0] if name.startswith(("adam", "average", "model"))]
    assert any(name.endswith("exp_avg_sq") for name in names)
    for name in names:
        assert torch.equal(moments[0][name], moments[1][name]), name


def test_a_schedule_goes_on_at_the_rate_of_the_new_length(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rates after the raise are those of the longer training, and a short raise barely moves weights."""
    run = Run(tmp_path, create=True)
    train(run, data, schedule="cosine", steps=100)
    before = load_file(tmp_path / "vqvae.safetensors")
    rates: list[float] = []
    step_of = torch.optim.Adam.step

    def noted(self: torch.optim.Adam, *args: Any, **options: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step_of(self, *args, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    train(run, data, schedule="cosine", steps=104)
    wanted = [1e-3 * (1 + math.cos(math.pi * step / 104)) / 2 for step in range(100, 104)]
    assert rates == pytest.approx(wanted)
    after = load_file(tmp_path / "vqvae.safetensors")
    # Adam moves a weight by about the rate
    for name in before:
        if name.endswith("weight"):
            assert (after[name] - before[name]).abs().max() < 3 * sum(wanted), name


def test_without_its_state_a_training_stays_as_it_is(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, create=True)
    train(run, data)
    (tmp_path / "vqvae.state.safetensors").unlink()
    before = contents(run)
    with pytest.raises(ValueError, match="from which the vqvae was to go on, was removed; use another"):
        train(run, data, steps=STEPS)
    train(run, data)
    assert contents(run) == before


@pytest.mark.parametrize("method", ["unlink", "replace"])
def test_killed_as_it_is_reopened(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Nothing is lost: the shorter training can be had back, and the longer one goes on."""
    run = Run(tmp_path, create=True)
    train(run, data)
    before = contents(run)

    def dying(self: Path, *args: Any, **options: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, method, dying)  # of the weights, or of run.json, which follows
        train(run, data, steps=STEPS)
    assert (tmp_path / "vqvae.safetensors").exists() == (method == "unlink")
    for leftover in tmp_path.glob(".vqfast*"):
        leftover.unlink()
    train(run, data)
    assert contents(run) == before
    train(run, data, steps=STEPS)
    assert read_json(tmp_path / "vqvae.history.json")["step"][-1] == STEPS - 1


@pytest.mark.parametrize(("earlier", "present"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_a_run_in_the_words_of_earlier_versions_goes_on(
    data: Path, tmp_path: Path, earlier: str, present: str
) -> None:
    whole, other = (Run(tmp_path / name, create=True) for name in ("whole", "other"))
    for run in (whole, other):
        train(run, data, precision=present)
    marker = other.folder / "run.json"
    text = marker.read_text()
    assert text.count(f'"precision": "{present}"') == 1
    marker.write_text(text.replace(f'"{present}"', f'"{earlier}"'))
    for run in (whole, other):
        train(run, data, precision=present, steps=STEPS)
    assert contents(other) == contents(whole)


def test_a_prior_goes_on_and_a_vqvae_with_codes_does_not(trained: Run, data: Path, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    before = contents(run)
    with pytest.raises(
        ValueError, match="holds codes of the VQ-VAE that was to go on: remove codes/, or use"
    ):
        train(run, data, steps=STEPS)
    assert contents(run) == before
    train_its_prior(run, steps=STEPS)
    assert read_json(run.folder / "prior.history.json")["step"][-1] == STEPS - 1


def test_a_patience_that_has_ended_a_training_must_be_raised(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, create=True)
    bad: dict[str, Any] = {"lr": 0.3, "val_every": 1}  # worse soon, but finite
    train(run, data, patience=2, **bad)
    ended = read_json(tmp_path / "vqvae.history.json")["step"][-1] + 1
    assert ended < 12
    before = contents(run)
    with pytest.raises(ValueError, match=f"patience is 2, which ended the vqvae after {ended} steps of 12"):
        train(run, data, steps=STEPS, patience=2, **bad)
    assert contents(run) == before
    with pytest.raises(ValueError, match="patience was 2, now 1; use another folder"):
        train(run, data, patience=1, **bad)
    train(run, data, steps=STEPS, **bad)
    assert read_json(tmp_path / "vqvae.history.json")["step"][-1] == STEPS - 1


def test_a_warmup_as_long_as_the_training_is_an_error(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", create=True)
    with pytest.raises(ValueError, match="warmup is 12; want below 12, the steps, to reach the"):
        train(run, data, warmup=12)
    train(run, data, warmup=11)


def test_epochs(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, create=True)
    train(run, data, steps=None, epochs=1.5)  # 45 images in batches of 8
    assert run.settings("vqvae")["steps"] == 9
    train(run, data, steps=None, epochs=2)
    assert run.settings("vqvae")["steps"] == 12
    with pytest.raises(ValueError, match="steps and epochs exclude each other; want one of them"):
        train(run, data, epochs=1)
    with pytest.raises(ValueError, match="epochs is 0; want a finite number, above 0"):
        train(run, data, steps=None, epochs=0)
    with pytest.raises(ValueError, match=r"epochs is 1e\+300; want steps below 2\^63"):
        train(run, data, steps=None, epochs=1e300)
