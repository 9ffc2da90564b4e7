"""The loop of every training: resumable to the bit."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vqfast.checks import check_integer, check_number
from vqfast.pipeline.interrupts import held_back
from vqfast.pipeline.progress import LINE_SECONDS, bar, estimate_line
from vqfast.pipeline.ranks import Ranks
from vqfast.pipeline.storage import read_tensors, write_tensors
from vqfast.pipeline.validation import History, Validation, measured

SAVE_SECONDS = 15.0
RECORD_STEPS = 10
ESTIMATE_STEPS = 10  # after which the time that is left is estimated; the first one takes longer
COLLAPSED = 1.5  # a perplexity below it, at COLLAPSED_RECORDS in a row, is a collapse
COLLAPSED_RECORDS = 10

COLLAPSE = (
    "the codebook has collapsed, all vectors have the same code: "
    "start it by k-means, use moving averages (decay 0.95) or a smaller lr"
)


def batch_numbers(num: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Which of ``num`` items make up a step's batch: int64 ``(batch_size,)``.

    Epochs follow each other without a gap, each in an order of its own.
    """
    places = torch.arange(step * batch_size, (step + 1) * batch_size)
    numbers = torch.empty_like(places)
    for epoch in sorted(set((places // num).tolist())):
        in_epoch = places // num == epoch
        numbers[in_epoch] = _order(num, epoch, seed)[places[in_epoch] % num]
    return numbers


def _step_seed(seed: int, step: int) -> int:
    """The seed of what is drawn in a step, which therefore is the same in a training that went on."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


@lru_cache(maxsize=2)
def _order(num: int, epoch: int, seed: int) -> Tensor:
    # torch's generator would look at the low 32 bits of a seed only: too few for both
    return torch.from_numpy(np.argsort(np.random.PCG64([seed, epoch]).random_raw(num), kind="stable"))


def fit(
    model: nn.Module,
    metrics_of: Callable[[int, Tensor], dict[str, Tensor]],
    num: int,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    state: Path,
    ranks: Ranks,
    label: str,
    used: Tensor | None = None,
    validation: Validation | None = None,
    log: Callable[[History], object] = lambda history: None,
) -> History:
    """Trains a model by Adam, whose learning rate decays to zero by a cosine.

    A step's batch and random numbers depend on ``seed`` and the step alone, and the file ``state`` holds
    everything else: so a killed training that is begun again ends with the same bits. On SIGINT (Ctrl-C) or
    SIGTERM the running step is finished and saved before the signal acts; with several processes, which must
    stop at the same step, the next of every ``RECORD_STEPS``. Each process takes its share of every batch.

    Args:
        metrics_of: a step and the numbers of the items in its batch -> means over them, among them ``loss``.
        num: how many items there are.
        steps: how many steps the whole training has.
        batch_size: items in a batch, over all processes.
        lr: the learning rate at the start.
        state: the file that holds weights, optimiser and history meanwhile; the caller removes it.
        label: of the progress bar.
        used: bool ``(K,)`` on the device of ``ranks``; ``metrics_of`` sets the codes that a batch uses. The
            history has ``dead_codes``: how many codes no batch has used since the step recorded before.
        validation: measures the model on held-out data; the model ends with the weights that were best there.
        log: is called with the history whenever the state is saved, and at the end, in the first process.

    Returns:
        The metrics at every tenth step, means over all processes, by name; ``step`` has the steps.

    Raises:
        TypeError: ``steps`` or ``batch_size`` is no integer, or ``lr`` no number.
        ValueError: an argument is out of range, the state is another model's, or the loss isn't finite.
    """
    check_integer("steps", steps)
    check_integer("batch_size", batch_size)
    check_number("lr", lr, above=0)
    if batch_size < ranks.world:
        raise ValueError(f"batch_size is {batch_size}; want {ranks.world} (the number of processes) or more")
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    parameters = list(model.parameters())
    begin = 0
    history: History = {}
    best: dict[str, Tensor] = {}
    if state.is_file():
        begin, history = _restore(state, model, optimizer, steps, used, best)
        best = best or _weights(model)  # a finished training's state has the best weights only
    ranks.barrier()  # all have read the state before one writes it
    saved = began = time.monotonic()
    model.train()
    with bar(ranks, label, steps, done=begin, unit="step") as progress, held_back() as received:
        for step in range(begin, steps):
            if validation and validation.is_over(history):
                break
            torch.manual_seed(_step_seed(seed, step))  # layers draw the codes that they revive
            numbers = batch_numbers(num, batch_size, step, seed)[ranks.rank :: ranks.world]
            metrics = metrics_of(step, numbers)
            share = len(numbers) / batch_size
            optimizer.zero_grad()
            torch.autograd.backward(metrics["loss"] * share)
            ranks.add_up(p.grad for p in parameters if p.grad is not None)
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.step()
            validated = validation is not None and validation.is_due(step, steps)
            recorded = step % RECORD_STEPS == 0 or step == steps - 1 or validated
            if recorded:
                values = torch.stack([v.detach().double() for v in metrics.values()]) * share
                ranks.add_up([values])
                means = dict(zip(metrics, values.tolist(), strict=True))
                if used is not None:
                    uses = used.double()
                    ranks.add_up([uses])
                    means["dead_codes"] = float((uses == 0).sum())
                    used.zero_()
                if validation and validated:
                    model.eval()
                    means |= validation.measure()
                    model.train()
                    ranks.works_at(label)
                _record(history, step, means)
                if validation and validated and validation.is_best(history):
                    best = _weights(model)
                shown = {name: f"{measured(column)[-1]:.4g}" for name, column in history.items()}
                progress.set_postfix(shown, refresh=False)
                if ranks.first and collapsed(history):
                    progress.write(f"{label}: {COLLAPSE}", file=sys.stderr)
            progress.update()
            now = time.monotonic()
            if step == begin:
                began = now
            elif ranks.first and step - begin == ESTIMATE_STEPS:
                left = steps - step - 1
                seconds = (now - began) / ESTIMATE_STEPS * left
                if seconds > LINE_SECONDS:
                    progress.write(f"{label}: {estimate_line(left, seconds)}", file=sys.stderr)
            may_stop = recorded or ranks.world == 1
            stop = may_stop and ranks.any(bool(received))
            if ranks.first and may_stop and (stop or now - saved > SAVE_SECONDS):
                _save(state, model, optimizer, step + 1, history, used, best if validation else {})
                log(history)
                saved = now
            if stop:
                ranks.barrier()  # a process that ends makes torchrun end the others, which must have saved
                raise KeyboardInterrupt
    if ranks.first:
        log(history)
    if validation:
        model.load_state_dict(best)
    return history


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _record(history: History, step: int, metrics: dict[str, float]) -> None:
    if not math.isfinite(metrics["loss"]):
        raise ValueError(
            f"the loss is {metrics['loss']} at step {step}: try a smaller lr, or look at the data"
        )
    means = {"step": step, **metrics}
    for name in {**history, **means}:  # the first record has all
        history.setdefault(name, []).append(means.get(name))


def reopen(state: Path, weights: dict[str, Tensor], history: History) -> None:
    """Writes the state of a finished training that is to go on; Adam's moments begin at zero."""
    _write_state(state, weights, int(measured(history["step"])[-1]) + 1, history, {})


def collapsed(history: History) -> bool:
    """Whether the codebook has just collapsed: nearly all vectors have had one code for many steps.

    It is true once for each collapse.
    """
    perplexities = measured(history.get("perplexity", []))[-COLLAPSED_RECORDS - 1 :]
    low = [perplexity < COLLAPSED for perplexity in perplexities]
    dead = measured(history.get("dead_codes", [0]))[-1] > 0  # or there is a single code
    return dead and sum(low[-COLLAPSED_RECORDS:]) == COLLAPSED_RECORDS and sum(low) == COLLAPSED_RECORDS


def _save(
    state: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    history: History,
    used: Tensor | None,
    best: dict[str, Tensor],
) -> None:
    others = {f"best.{name}": t for name, t in best.items()} | ({} if used is None else {"used": used})
    for number, moments in optimizer.state_dict()["state"].items():
        others |= {f"adam.{number}.{name}": t for name, t in moments.items()}
    _write_state(state, model.state_dict(), step, history, others)


def _write_state(
    state: Path, weights: dict[str, Tensor], step: int, history: History, others: dict[str, Tensor]
) -> None:
    tensors = {f"model.{name}": t for name, t in weights.items()}
    text = json.dumps({"step": step, "history": history}).encode()
    tensors["progress"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    write_tensors(state, {**tensors, **others})


def _restore(
    state: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    used: Tensor | None,
    best: dict[str, Tensor],
) -> tuple[int, History]:
    tensors = read_tensors(state)
    try:
        progress = json.loads(bytes(tensors.pop("progress").tolist()))
        step, history = progress["step"], progress["history"]
        check_integer("step", step, 0, steps)
        if len({len([v is None or float(v) for v in column]) for column in history.values()}) > 1:
            raise ValueError("the history's columns differ in length")
        if used is not None:
            used.copy_(tensors.get("used", used))  # a finished training's state has none
        best |= {n[5:]: t for n, t in tensors.items() if n.startswith("best.")}
        model.load_state_dict({n[6:]: t for n, t in tensors.items() if n.startswith("model.")})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, number, moment = name.split(".")
                moments.setdefault(int(number), {})[moment] = tensor
        for place, found in moments.items():
            shape = optimizer.param_groups[0]["params"][place].shape
            if {n: t.shape for n, t in found.items()} != {"step": (), "exp_avg": shape, "exp_avg_sq": shape}:
                raise ValueError(f"moments {place} have other shapes")
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        return step, history
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{state} is no state of this training; remove it to start anew") from error
