"""How weights move: against loops written by hand, and to the bit after a stop."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.models import VQVAE
from vqfast.pipeline import Training, loop, state
from vqfast.pipeline.batches import read_ahead
from vqfast.pipeline.loop import History, Task, fit
from vqfast.pipeline.optimizing import make_optimizer, set_rates
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.validation import Validation
from vqfast.saving.storage import read_tensors

STEPS, LR, BATCH = 12, 1e-2, 4
X = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ALL: dict[str, Any] = {
    "optimizer": "adamw",
    "weight_decay": 0.1,
    "schedule": "onecycle",
    "clip": 0.05,
    "ema": 0.8,
    "precision": "bfloat16",
    "workers": 2,
}


def rates(training: Training, steps: int) -> list[tuple[float, float]]:
    optimizer = make_optimizer(nn.Linear(1, 1), training)
    found = []
    for step in range(steps):
        set_rates(optimizer, training, step, steps)
        found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][0]))
    return found


@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules(warmup: int) -> None:
    rise = [LR * part / (warmup + 1) for part in range(1, warmup + 1)]
    shares = np.arange(STEPS - warmup) / (STEPS - warmup)
    for schedule, decay in (
        ("cosine", LR * np.cos(math.pi / 2 * shares) ** 2),
        ("linear", LR * (1 - shares)),
        ("constant", LR * np.ones(STEPS - warmup)),
    ):
        found = rates(Training(lr=LR, schedule=schedule, warmup=warmup), STEPS)
        np.testing.assert_allclose([lr for lr, _ in found], [*rise, *decay], atol=1e-12)
        assert {beta for _, beta in found} == {0.9}


@pytest.mark.parametrize("steps", [3, 4, 10, 37])
def test_onecycle_is_torchs(steps: int) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=LR)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    expected = []
    for _ in range(steps):
        expected.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][0]))
        optimizer.step()
        if len(expected) < steps:
            cycle.step()
    np.testing.assert_allclose(rates(Training(lr=LR, schedule="onecycle"), steps), expected, rtol=1e-9)


def autoencoder() -> VQVAE:
    """One with batch normalisation and a codebook that is a buffer."""
    torch.manual_seed(0)
    small = {"in_channels": 1, "hidden_channels": 8, "num_downsamplings": 1, "embedding_dim": 4}
    return VQVAE.named("ruseckas", num_embeddings=8, decay=0.9, kmeans_init=False, revive_below=0, **small)


def task_of(model: nn.Module) -> Task:
    def metrics(step: int, x: Tensor) -> dict[str, Tensor]:
        out = model(x)
        return {"loss": F.mse_loss(out.reconstruction, x) + out.loss}

    return Task("model", len(X), lambda share: X[share.numbers], metrics)


def trained(model: nn.Module, file: Path, validation: Validation | None = None, **options: Any) -> History:
    given = {"steps": STEPS, "batch_size": BATCH, "lr": LR, "schedule": "cosine", **options}
    training = Training(**given)
    return fit(model, task_of(model), training, file=file, ranks=ALONE, validation=validation)


def by_hand(model: nn.Module, options: dict[str, Any]) -> dict[str, Tensor]:
    """The same training, written out; gives the averages, or the weights without ``ema``."""
    kind = torch.optim.AdamW if options.get("optimizer") == "adamw" else torch.optim.Adam
    decay = options.get("weight_decay", 0.0)
    optimizer = kind(model.parameters(), lr=LR, weight_decay=decay, foreach=False)
    averages = {name: t.clone() for name, t in model.state_dict().items()}
    for step in range(STEPS):
        x = X[loop.batch_numbers(len(X), BATCH, step, 0)]
        out = model(x)
        optimizer.zero_grad()
        (F.mse_loss(out.reconstruction, x) + out.loss).backward()
        if "clip" in options:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            for gradient in gradients:
                gradient.mul_(min(1.0, options["clip"] / norm.item()))
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 + math.cos(math.pi * step / STEPS)) / 2
        optimizer.step()
        moved = min(options.get("ema", 0.0), (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                averages[name] = moved * averages[name] + (1 - moved) * tensor
            else:
                averages[name] = tensor.clone()
    return averages


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"clip": 0.01},
        {"ema": 0.8},
        {"optimizer": "adamw", "weight_decay": 0.1, "clip": 0.01, "ema": 0.8},
    ],
    ids=str,
)
def test_a_loop_by_hand_gives_the_same_weights(options: dict[str, Any], tmp_path: Path) -> None:
    model, twin = autoencoder(), autoencoder()
    trained(model, tmp_path / "state", **options)
    expected = by_hand(twin, options)
    moved = max((expected[name] - t).abs().max().item() for name, t in autoencoder().state_dict().items())
    assert moved > 10 * LR / 2
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=2e-3, atol=2e-4)


def test_averages_are_measured_and_kept(tmp_path: Path) -> None:
    model, seen = autoencoder(), []

    def measure() -> dict[str, float]:
        assert not model.training
        seen.append(copy.deepcopy(model.state_dict()))
        return {"figure": abs(len(seen) - 2)}  # the second is best

    trained(model, tmp_path / "state", Validation(measure, "figure", 3), ema=0.8)
    twin = autoencoder()
    trained(twin, tmp_path / "last", ema=0.8)
    kept = model.state_dict()
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in kept.items())
    assert all(torch.equal(tensor, seen[-1][name]) for name, tensor in twin.state_dict().items())


@pytest.mark.parametrize("changes", [{}, {"precision": "float16"}, {"compile": True}], ids=str)
def test_with_all_options_it_is_the_same_after_a_stop(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    if "precision" in changes:  # a CPU can do it, slowly
        monkeypatch.setattr(state, "check_precision", lambda precision, device: None)
    if "compile" in changes:  # the default backend takes long
        compiled = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda self: compiled(self, backend="eager"))
    options = {**ALL, **changes}
    whole = autoencoder()
    history = trained(whole, tmp_path / "whole", **options)
    numbers = loop.batch_numbers
    for last in (1, 4, 6):

        def stopped(num: int, batch_size: int, step: int, seed: int, last: int = last) -> Tensor:
            if step == last + 5:  # which two readers are to read as step ``last`` ends
                raise KeyError
            return numbers(num, batch_size, step, seed)

        with monkeypatch.context() as patch, pytest.raises(KeyError):
            patch.setattr(loop, "batch_numbers", stopped)
            trained(autoencoder(), tmp_path / "state", **options)
    tensors = read_tensors(tmp_path / "state")
    text = bytes(tensors["progress"].tolist())
    assert b'"step": 7' in text and (b'"scale": ' in text) == ("precision" in changes)
    again = autoencoder()
    assert trained(again, tmp_path / "state", **options) == history
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_fp16_steps_that_overflow_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "check_precision", lambda precision, device: None)
    model = nn.Linear(1, 1, bias=False)
    weights: list[float] = []

    def metrics(step: int, x: Tensor) -> dict[str, Tensor]:
        weights.append(model.weight.item())
        assert model(x).dtype == torch.float16
        return {"loss": model(x).float().sum() * (100.0 if step == 1 else 1.0)}

    task = Task("model", 1, lambda share: torch.ones(1, 1), metrics)
    training = Training(steps=3, batch_size=1, lr=0.1, schedule="constant", precision="float16")
    fit(model, task, training, file=tmp_path / "state", ranks=ALONE)
    # with 65536, the first scale, the gradient is infinite in float16; it is halved after each such step
    assert weights[0] == weights[1] == weights[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "step"}, "schedule is 'step'; want 'cosine', 'linear', 'constant' or 'onecycle'"),
        ({"warmup": -1}, "warmup is -1; want an integer, 0 or more"),
        ({"warmup": 5, "schedule": "onecycle"}, "warmup is 5; want 0 with schedule 'onecycle'"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; want 'adam' or 'adamw'"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"clip": 0.0}, "clip is 0.0; want a finite number, above 0"),
        ({"ema": 1.0}, "ema is 1.0; want a finite number, 0 or more, below 1"),
        ({"precision": "fp8"}, "precision is 'fp8'; want 'float32', 'bfloat16' or 'float16'"),
        ({"workers": -1}, "workers is -1"),
        ({"precision": "float16"}, "precision is 'float16'; want 'float32' or 'bfloat16' on a CPU"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        trained(autoencoder(), tmp_path / "state", **options)


def test_shares_are_read_ahead_in_their_order() -> None:
    for workers in (0, 1, 3):
        assert list(read_ahead(lambda x: x * x, range(20), workers)) == [(x, x * x) for x in range(20)]
        with pytest.raises(ZeroDivisionError):
            list(read_ahead(lambda x: 1 // x, range(5, -5, -1), workers))


def test_chances_are_uniform_and_each_steps_own() -> None:
    drawn = torch.stack([loop.batch_chances(64, step, seed) for step in range(9) for seed in (0, 1)])
    assert drawn.dtype == torch.float64 and drawn.min() >= 0 and drawn.max() < 1
    assert len(drawn.unique()) == drawn.numel() and abs(drawn.mean() - 0.5) < 0.02
    shares = [loop._share(9, Training(batch_size=64), 3, Ranks(rank, 2)) for rank in range(2)]
    both = torch.cat([share.chances for share in shares])
    assert torch.equal(both, loop.batch_chances(64, 3, 0))  # an item has the same ones, however many ranks
