"""Held-out figures while a model trains: the best weights are kept, and the training may end early."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.pipeline.trained import PRIOR, files, train, train_its_prior
from vqfast.pipeline import Run, encode, load_model, loop, measure_reconstruction, reopen_parts, stage_codes
from vqfast.pipeline.loop import Share, Task, fit
from vqfast.pipeline.measures import bits_per_code
from vqfast.pipeline.options import Training
from vqfast.pipeline.ranks import ALONE
from vqfast.pipeline.validation import History, Validation
from vqfast.saving.storage import read_json

EVERY = 4


def trained(
    state: Path, figures: list[float], patience: int | None = None, steps: int = 4 * EVERY
) -> tuple[Tensor, History, list[Tensor]]:
    """A training whose held-out figures are given: its weights, its history, and all weights measured."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    seen: list[Tensor] = []

    def measure() -> dict[str, float]:
        assert not model.training
        seen.append(model.weight.detach().clone())
        return {"other": 0.0, "figure": figures[taken()]}

    def taken() -> int:
        return len([step for step in current if step % EVERY == 0 or step == steps - 1]) - 1

    current: list[int] = []

    def metrics(step: int, batch: Share) -> dict[str, Tensor]:
        assert model.training
        current[:] = range(step + 1)
        return {"loss": (model(torch.ones(1)) - 3).square().sum()}

    validation = Validation(measure, "figure", EVERY, patience)
    task, training = (
        Task("model", 1, lambda share: share, metrics),
        Training(steps=steps, batch_size=1, lr=0.1),
    )
    history = fit(model, task, training, file=state, ranks=ALONE, validation=validation)
    assert model.training
    return model.weight.detach(), history, seen


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    weight, history, seen = trained(tmp_path / "state", [5.0, 2.0, 3.0, 4.0, 2.5])
    assert history["step"] == [0, 4, 8, 10, 12, 15]
    assert history["figure"] == [5.0, 2.0, 3.0, None, 4.0, 2.5]
    assert torch.equal(weight, seen[1]) and not torch.equal(seen[1], seen[4])


@pytest.mark.parametrize(("patience", "last"), [(1, 8), (2, 12), (3, 15), (None, 15)])
def test_it_ends_early(tmp_path: Path, patience: int | None, last: int) -> None:
    weight, history, seen = trained(tmp_path / "state", [5.0, 2.0, 3.0, 4.0, 2.5], patience)
    assert history["step"][-1] == last and torch.equal(weight, seen[1])


@pytest.mark.parametrize("patience", [1, 2, None])
def test_stopped_at_every_step_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int | None
) -> None:
    figures = [5.0, 2.0, 3.0, 4.0, 2.5]
    weight, history, _ = trained(tmp_path / "whole", figures, patience)
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    numbers = loop.batch_numbers
    for last in range(1, 4 * EVERY):

        def stopped(num: int, batch_size: int, step: int, seed: int, last: int = last) -> Tensor:
            if step == last:
                raise KeyError
            return numbers(num, batch_size, step, seed)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "batch_numbers", stopped)
            try:
                trained(tmp_path / "state", figures, patience)
            except KeyError:
                pass
            else:
                assert last > history["step"][-1]
    again, its_history, _ = trained(tmp_path / "state", figures, patience)
    assert torch.equal(again, weight) and its_history == history


def test_a_run_is_measured_on_its_held_out_part(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, create=True)
    train(run, data, val_every=5)
    history = read_json(tmp_path / "vqvae.history.json")
    assert history["step"] == [0, 5, 10, 11]
    best = min(history["held_out_mse"])
    model = load_model(tmp_path, "vqvae")
    held_out = reopen_parts(run)["held-out"]
    assert measure_reconstruction(model, held_out)["mse"] == pytest.approx(best, rel=1e-6)
    for name, value in measure_reconstruction(model, held_out).items():
        column = history[f"held_out_{name}"]
        assert column[history["held_out_mse"].index(best)] == pytest.approx(value)
    assert "held_out_perplexity" in history and "held_out_codes_in_use" in history
    before = files(tmp_path)
    train(run, data, val_every=5)
    assert files(tmp_path) == before
    with pytest.raises(ValueError, match="has vqvae with other settings: val_every was 5, now None"):
        train(run, data)
    train(run, data, val_every=5, steps=14)  # goes on, and the best of both is kept
    history = read_json(tmp_path / "vqvae.history.json")
    assert history["step"] == [0, 5, 10, 11, 13]
    best = min(history["held_out_mse"])
    model = load_model(tmp_path, "vqvae")
    assert measure_reconstruction(model, held_out)["mse"] == pytest.approx(best, rel=1e-6)
    for part, images in reopen_parts(run).items():
        encode(run, model, images, part=part)
    prior = train_its_prior(run, val_every=5, patience=2, prior_options=PRIOR)
    column = read_json(tmp_path / "prior.history.json")["held_out_bits_per_code"]
    bits = bits_per_code([prior], stage_codes(run, "codes/held-out")).mean().item()
    assert bits == pytest.approx(min(column), rel=1e-6)


def test_a_longer_training_keeps_the_best_of_the_shorter(data: Path, tmp_path: Path) -> None:
    """Where nothing better comes, the weights stay."""
    run = Run(tmp_path, create=True)
    train(run, data, val_every=5)
    before = load_model(tmp_path, "vqvae").state_dict()
    best = min(read_json(tmp_path / "vqvae.history.json")["held_out_mse"])
    file = tmp_path / "vqvae.state.safetensors"
    state = load_file(file)
    progress = bytes(state["progress"].tolist()).replace(repr(best).encode(), b"1e-09")
    save_file({**state, "progress": torch.tensor(list(progress), dtype=torch.uint8)}, file)
    train(run, data, val_every=5, steps=14)
    after = load_model(tmp_path, "vqvae").state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_bad_validation(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, create=True)
    with pytest.raises(ValueError, match="patience goes with val_every"):
        train(run, data, patience=2)
    for name in ("val_every", "patience"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            train(run, data, **{"val_every": 1, name: 0})


def test_a_figure_that_is_not_a_number_is_not_the_best() -> None:
    validation = Validation(dict, "figure", EVERY, patience=1)
    assert validation.is_best({"figure": [math.nan, 1.0, 0.5]})
    assert not validation.is_over({"figure": [math.nan, 1.0]})
