"""The loop of every training: resumable to the bit."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vqfast.pipeline.alarms import Estimate, warnings
from vqfast.pipeline.averages import put
from vqfast.pipeline.batches import batch_chances, batch_numbers, read_ahead, step_seed
from vqfast.pipeline.interrupts import held_back
from vqfast.pipeline.optimizing import set_rates
from vqfast.pipeline.options import PRECISIONS, Training
from vqfast.pipeline.progress import LOG, bar
from vqfast.pipeline.ranks import Ranks
from vqfast.pipeline.state import State
from vqfast.pipeline.validation import History, Validation, measured

SAVE_SECONDS = 15.0
RECORD_STEPS = 10


class Share(NamedTuple):
    """The part of a step's batch that one process takes.

    Attributes:
        step: of the training.
        numbers: of the items, int64 ``(n,)``.
        chances: random numbers in [0, 1), float64 ``(n, 3)``, by which the items may be varied.
    """

    step: int
    numbers: Tensor
    chances: Tensor


@dataclass(frozen=True)
class Task:
    """What a model learns.

    Args:
        label: of the progress bar.
        num: how many items there are.
        batch: reads the items of a share.
        metrics: a step and what ``batch`` read -> means over the items, among them ``loss``.
        used: the name of a figure -> bool ``(K,)`` on the device, in which ``metrics`` sets the codes that a
            batch uses. The figure says how many codes no batch has used since the step recorded before.
    """

    label: str
    num: int
    batch: Callable[[Share], Any]
    metrics: Callable[[int, Any], dict[str, Tensor]]
    used: Mapping[str, Tensor] = field(default_factory=dict)


def fit(
    model: nn.Module,
    task: Task,
    training: Training,
    *,
    file: Path,
    ranks: Ranks,
    validation: Validation | None = None,
    log: Callable[[History], object] = lambda history: None,
) -> History:
    """Trains a model.

    A step's batch and random numbers depend on the seed and the step alone, and a file holds everything
    else: so a killed training that is begun again ends with the same bits. On SIGINT (Ctrl-C) or SIGTERM the
    running step is finished and saved before the signal acts; with several processes, which must stop at the
    same step, the next of every ``RECORD_STEPS``. Each process takes its share of every batch.

    Args:
        file: holds the state; from it a longer training goes on.
        validation: measures the model on held-out data; the model ends with the weights that were best there.
        log: is called with the history whenever the state is saved, and at the end, in the first process.

    Returns:
        The metrics at every tenth step, means over all processes, by name; ``step`` has the steps.

    Raises:
        ValueError: the batch is smaller than the number of processes, the state is another model's, or the
            loss isn't finite.
    """
    steps = training.num_steps(task.num)
    if training.batch_size < ranks.world:
        wanted = f"{ranks.world} (the number of processes) or more"
        raise ValueError(f"batch_size is {training.batch_size}; want {wanted}")
    state = State(model, training, task.used, ranks.device)
    if training.compile:
        model.compile()
    if file.is_file():
        state.restore(file, steps)
    ranks.barrier()  # all have read the state before one writes it
    estimate, saved = Estimate(state.step, steps), time.monotonic()
    model.train()
    shares = (_share(task.num, training, step, ranks) for step in range(state.step, steps))
    reading = closing(read_ahead(task.batch, shares, training.workers))
    showing = bar(ranks, task.label, steps, done=state.step, unit="step")
    with reading as batches, showing as progress, held_back() as received:

        def say(line: str | None, level: int) -> None:
            if line is not None and ranks.first:
                progress.clear()
                LOG.log(level, "%s: %s", task.label, line)

        for share, batch in batches:
            step = share.step
            if validation and validation.is_over(state.history):
                break
            metrics = _take_step(state, task, training, share, batch, ranks)
            due = validation is not None and validation.is_due(step, steps)
            recorded = step % RECORD_STEPS == 0 or step == steps - 1 or due
            if recorded:
                means = _means(metrics, task, len(share.numbers) / training.batch_size, ranks)
                if validation and due:
                    with state.measured():
                        means |= validation.measure()
                    ranks.works_at(task.label)
                _record(state.history, step, means)
                if validation and due and validation.is_best(state.history):
                    state.best = state.weights()
                progress.set_postfix(_shown(state.history, validation), refresh=False)
                for line in warnings(state.history):
                    say(line, logging.WARNING)
            progress.update()
            now = time.monotonic()
            say(estimate.line(step, now), logging.INFO)
            may_stop = recorded or ranks.world == 1
            stop = may_stop and ranks.any(bool(received))
            if ranks.first and may_stop and (stop or now - saved > SAVE_SECONDS):
                state.save(file)
                log(state.history)
                saved = now
            if stop:
                ranks.barrier()  # a process that ends makes torchrun end the others, which must have saved
                raise KeyboardInterrupt
    if ranks.first:
        state.save(file)
        log(state.history)
    put(state.best if validation else state.weights(), model)
    return state.history


def _share(num: int, training: Training, step: int, ranks: Ranks) -> Share:
    numbers = batch_numbers(num, training.batch_size, step, training.seed)
    chances = batch_chances(training.batch_size, step, training.seed)
    # one part after the other, as layers join the vectors of all ranks: they start and revive the same codes
    own = torch.tensor_split(torch.arange(training.batch_size), ranks.world)[ranks.rank]
    return Share(step, numbers[own], chances[own])


def _take_step(
    state: State, task: Task, training: Training, share: Share, batch: Any, ranks: Ranks
) -> dict[str, Tensor]:
    """Moves the weights by one step; gives its metrics, of this process."""
    torch.manual_seed(step_seed(training.seed, share.step))  # layers draw the codes that they revive
    mixed = training.precision != "float32"
    with torch.autocast(ranks.device.type, PRECISIONS[training.precision], enabled=mixed):
        metrics = task.metrics(share.step, batch)
    state.optimizer.zero_grad()
    loss = metrics["loss"] * (len(share.numbers) / training.batch_size)
    torch.autograd.backward(state.scaler.scale(loss))
    ranks.add_up(p.grad for p in state.model.parameters() if p.grad is not None)
    state.scaler.unscale_(state.optimizer)
    if training.clip is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), training.clip)
    set_rates(state.optimizer, training, share.step, training.num_steps(task.num))
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.averages is not None:
        state.averages.update(state.model, share.step)
    state.step += 1
    return metrics


def _means(metrics: dict[str, Tensor], task: Task, share: float, ranks: Ranks) -> dict[str, float]:
    """The metrics of a step over all processes, of which this one had a share; and the codes unused."""
    values = torch.stack([v.detach().double() for v in metrics.values()]) * share
    ranks.add_up([values])
    means = dict(zip(metrics, values.tolist(), strict=True))
    for name, mask in task.used.items():
        uses = mask.double()
        ranks.add_up([uses])
        means[name] = float((uses == 0).sum())
        mask.zero_()
    return means


def _shown(history: History, validation: Validation | None) -> dict[str, str]:
    """The last figures, in words; of the held-out ones, the one that counts."""
    names = [name for name in history if name != "step" and not name.startswith("held_out")]
    names += [validation.figure] if validation else []
    return {name: f"{measured(history[name])[-1]:.4g}" for name in names}


def _record(history: History, step: int, metrics: dict[str, float]) -> None:
    if not math.isfinite(metrics["loss"]):
        raise ValueError(
            f"the loss is {metrics['loss']} at step {step}: try a smaller lr, or look at the data"
        )
    means = {"step": step, **metrics}
    for name in {**history, **means}:  # the first record has all
        history.setdefault(name, []).append(means.get(name))
