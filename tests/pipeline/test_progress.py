"""What a training says while it runs: plain lines, an estimate of the time, and warnings."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vqfast.pipeline import loop, progress
from vqfast.pipeline.alarms import COLLAPSED_RECORDS, DIVERGENCE, collapsed, diverged, warnings
from vqfast.pipeline.loop import History, Share, Task, fit
from vqfast.pipeline.options import Training
from vqfast.pipeline.progress import bar, estimate_line
from vqfast.pipeline.ranks import ALONE, Ranks


def test_plain_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(ranks: Ranks) -> str:
        with bar(ranks, "work", 4, unit="item") as shown:
            for number in range(4):
                shown.set_postfix({"loss": number}, refresh=False)
                shown.update()
                shown.clear()
                sys.stderr.write("said\n")
        return capsys.readouterr().err

    assert work(ALONE) == "said\n" * 4  # short work shows no line
    monkeypatch.setattr(progress, "LINE_SECONDS", 1e-9)
    lines = work(ALONE).splitlines()
    assert [line for line in lines if line == "said"] == ["said"] * 4
    shown = [line for line in lines if line != "said"]
    assert [line.partition(" [")[0] for line in shown] == [
        *(f"work: {25 * number:3}% {number}.00/4.00" for number in range(1, 5)),
        "work: 100% 4.00/4.00",
    ]
    assert "loss=3" in shown[-1] and "\r" not in "".join(shown)
    assert work(Ranks(rank=1)) == "said\n" * 4  # other processes show nothing


def test_the_estimate_says_when_it_is_days() -> None:
    assert estimate_line(100, 3600) == "100 steps are left, about 1:00:00"
    assert estimate_line(10**6, 36 * 3600).startswith(
        "1000000 steps are left, about 36:00:00: 1.5 days; fewer"
    )


def trained(state: Path, perplexities: list[float], used: Tensor) -> History:
    """A training of one weight; its steps have these perplexities."""
    model = nn.Linear(1, 1)

    def metrics(step: int, batch: Share) -> dict[str, Tensor]:
        used[step % 3] = True
        value = torch.tensor(perplexities[step // loop.RECORD_STEPS])
        return {"loss": model(torch.ones(1)).square().sum(), "perplexity": value}

    steps = len(perplexities) * loop.RECORD_STEPS
    task = Task("VQ-VAE", 1, lambda share: share, metrics, {"dead_codes": used})
    return fit(model, task, Training(steps=steps, batch_size=1), file=state, ranks=ALONE)


def test_a_training_estimates_its_time_and_warns_of_a_collapse_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vqfast")
    clock = iter(range(10**9))
    monkeypatch.setattr(loop.time, "monotonic", lambda: 3600.0 * next(clock))
    monkeypatch.setattr(loop, "SAVE_SECONDS", 1e9)
    history = trained(tmp_path / "state", [4.0] + [1.1] * 15, torch.zeros(8, dtype=torch.bool))
    assert history["dead_codes"][:2] == [7, 5]
    lines = caplog.messages
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert lines[0].startswith("VQ-VAE: 149 steps are left, about 149:00:00: 6.2 days; fewer steps")
    assert lines[1].startswith("VQ-VAE: the codebook has collapsed")


@pytest.mark.parametrize(
    ("low", "dead", "expected"),
    [(9, 3, False), (10, 3, True), (11, 3, False), (10, 0, False)],
)
def test_a_collapse(low: int, dead: int, expected: bool) -> None:
    assert COLLAPSED_RECORDS == 10
    for before in ([], [5.0]):
        assert collapsed({"perplexity": [*before, *[1.2] * low], "dead_codes": [dead]}) == expected
    assert not collapsed({"loss": [1.0] * 20})  # a prior's


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0, 3.0, 3.0], False),
        ([1.0, 3.0, 3.0, 2.5], True),
        ([1.0, 3.0, 1.5, 3.0, 3.0], False),
        ([1.0, 3.0, 3.0, 2.5, 4.0], False),  # it was said before
        ([1.0, 0.1, 3.0, 3.0, 3.0], True),
        ([1.0, 1.9, 1.9, 1.9], False),
    ],
)
def test_a_divergence(losses: list[float], expected: bool) -> None:
    assert diverged({"loss": losses}) == expected
    assert (DIVERGENCE in warnings({"loss": losses})) == expected


def test_a_training_whose_rate_is_too_high_warns_before_it_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)), torch.randn(32, 4)

    def metrics(step: int, batch: Share) -> dict[str, Tensor]:
        return {"loss": (model(x) - x[:, :1]).square().mean()}

    for lr, warned in ((1e-3, False), (3.0, True)):
        task = Task("model", 1, lambda share: share, metrics)
        training = Training(steps=60, batch_size=1, lr=lr, schedule="constant")
        fit(model, task, training, file=tmp_path / f"state-{warned}", ranks=ALONE)
        assert (f"model: {DIVERGENCE}" in caplog.messages) == warned


def test_dead_codes_are_the_same_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which codes have been used since the last record is saved with the state."""
    whole = trained(tmp_path / "whole", [2.0, 2.0], torch.zeros(3, dtype=torch.bool))
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    numbers = loop.batch_numbers

    def stopped(num: int, batch_size: int, step: int, seed: int) -> Tensor:
        if step == 18:
            raise KeyError
        return numbers(num, batch_size, step, seed)

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(loop, "batch_numbers", stopped)
        trained(tmp_path / "state", [2.0, 2.0], torch.zeros(3, dtype=torch.bool))
    again = trained(tmp_path / "state", [2.0, 2.0], torch.zeros(3, dtype=torch.bool))
    assert again["dead_codes"] == whole["dead_codes"] == [2, 0, 0]
