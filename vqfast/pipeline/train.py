"""Training: the VQ-VAE on images, the prior on their codes; resumable to the bit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.checks import check_integer
from vqfast.data import Images
from vqfast.functional import perplexity
from vqfast.models import VQVAE
from vqfast.nn.kmeans import kmeans
from vqfast.pipeline.checkpoint import read_tensors, write_tensors
from vqfast.pipeline.progress import bar
from vqfast.pipeline.ranks import Ranks
from vqfast.priors.base import CausalPrior

SAVE_SECONDS = 15.0
RECORD_STEPS = 10
REFITS = (0.0, 0.05, 0.15, 0.3)  # when the codebook is fitted anew to what the encoder says by then

History = dict[str, list[float]]


def batch_rows(num: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Which of ``num`` items make up a step's batch: epochs, each in an order of its own, end to end."""
    places = torch.arange(step * batch_size, (step + 1) * batch_size)
    rows = torch.empty_like(places)
    for epoch in (places // num).unique().tolist():
        chosen = places // num == epoch
        rows[chosen] = _order(num, epoch, seed)[places[chosen] % num]
    return rows


@lru_cache(maxsize=2)
def _order(num: int, epoch: int, seed: int) -> Tensor:
    # torch's generator would look at the low 32 bits of a seed only: too few for both
    return torch.from_numpy(np.argsort(np.random.PCG64([seed, epoch]).random_raw(num), kind="stable"))


def fit(
    model: nn.Module,
    loss_of: Callable[[int, Tensor], dict[str, Tensor]],
    num_items: int,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    state: Path,
    ranks: Ranks,
    label: str,
) -> History:
    """Adam, its lr decaying to zero by a cosine, on ``loss_of(step, rows)["loss"]``; goes on from ``state``.

    A step's batch depends on seed and step alone, and ``state`` holds everything else: so a killed run, begun
    again, ends with the same bits. Under torchrun every process takes its share of each batch.

    Args:
        loss_of: the step and the row numbers of its batch -> means over those rows, among them the loss.
        state: where weights, optimiser and history are kept meanwhile; the caller removes it.

    Returns:
        The metrics, averaged over all processes, at every tenth step, and ``step``.

    Raises:
        ValueError: an argument is out of range, the state is another model's, or the loss isn't finite.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if not 1 <= value < 2**63:
            raise ValueError(f"{name} is {value}; want 1 or more, below 2^63")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr is {lr}; want a positive number")
    if batch_size < ranks.world:
        raise ValueError(f"batch_size is {batch_size}; want {ranks.world} (the number of processes) or more")
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    parameters = list(model.parameters())
    begin = 0
    history: dict[str, Any] = {}
    if state.is_file():
        begin, history = _restore(state, model, optimizer, steps)
    ranks.barrier()  # nobody writes before all have read
    saved = time.monotonic()
    model.train()
    with bar(ranks, label, steps, begin, "step") as progress:
        for step in range(begin, steps):
            rows = batch_rows(num_items, batch_size, step, seed)[ranks.rank :: ranks.world]
            metrics = loss_of(step, rows)
            share = len(rows) / batch_size
            optimizer.zero_grad()
            (metrics["loss"] * share).backward()
            ranks.add_up(p.grad for p in parameters if p.grad is not None)
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.step()
            if step % RECORD_STEPS == 0 or step == steps - 1:
                values = torch.stack([v.detach().double() for v in metrics.values()]) * share
                ranks.add_up([values])
                _record(history, step, dict(zip(metrics, values.tolist(), strict=True)))
                progress.set_postfix({name: f"{column[-1]:.4g}" for name, column in history.items()})
            progress.update()
            if ranks.first and time.monotonic() - saved > SAVE_SECONDS:
                _save(state, model, optimizer, step + 1, history)
                saved = time.monotonic()
    return history


def _record(history: History, step: int, metrics: dict[str, float]) -> None:
    if not math.isfinite(metrics["loss"]):
        raise ValueError(
            f"the loss is {metrics['loss']} at step {step}: try a smaller lr, or look at the data"
        )
    for name, value in {"step": step, **metrics}.items():
        history.setdefault(name, []).append(value)


def _save(
    state: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, history: History
) -> None:
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": t for name, t in moments.items()}
    text = json.dumps({"step": step, "history": history}).encode()
    tensors["progress"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    write_tensors(state, tensors)


def _restore(
    state: Path, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int
) -> tuple[int, History]:
    tensors = read_tensors(state)
    try:
        progress = json.loads(bytes(tensors.pop("progress").tolist()))
        step, history = progress["step"], progress["history"]
        check_integer("step", step, 0, steps)
        if len({len(list(map(float, column))) for column in history.values()}) > 1:
            raise ValueError("the history's columns differ in length")
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


def fit_vqvae(
    model: VQVAE, images: Images, *, codebook: str, ranks: Ranks, steps: int, seed: int, **settings
) -> History:
    """Trains a VQ-VAE: squared error over the data's variance (as in the Keras example) and the layer's.

    Args:
        codebook: ``"kmeans"`` fits it to the encoder's output at the start and a few times early on, so that
            no code is left behind while the encoder finds its range; ``"uniform"`` leaves it to itself.
        settings: see ``fit``.

    Returns:
        The history: loss, mse (of pixels in 0..1) and perplexity.
    """
    if codebook not in ("kmeans", "uniform"):
        raise ValueError(f"codebook is {codebook!r}; want kmeans or uniform")
    refits = {int(steps * share) for share in REFITS} if codebook == "kmeans" else ()
    num_embeddings = model.vq.num_embeddings
    some = images.batch(range(0, len(images), -(-len(images) // 1000)))
    variance = some.double().var(correction=0).clamp(min=1e-6).item()

    def loss_of(step: int, rows: Tensor) -> dict[str, Tensor]:
        if step in refits:
            _refit(model, some, seed, ranks)
        x = images.batch(rows).to(ranks.device)
        out = model(x)
        mse = F.mse_loss(out.reconstruction, x)
        return {
            "loss": mse / variance + out.loss,
            "mse": mse,
            "perplexity": perplexity(out.indices, num_embeddings),
        }

    options: dict[str, Any] = {"ranks": ranks, "label": "VQ-VAE", "steps": steps, "seed": seed}
    return fit(model, loss_of, len(images), **options, **settings)


@torch.no_grad()
def _refit(model: VQVAE, images: Tensor, seed: int, ranks: Ranks) -> None:
    """Fits the codebook to some images, the same ones on every process."""
    num_embeddings, codes = model.vq.num_embeddings, math.prod(model.code_shape(images.shape[2:]))
    images = images[: max(8, 64 * num_embeddings // codes)]
    model.eval()
    z_e = torch.cat([model.encoder(part.to(ranks.device)) for part in images.split(128)])
    model.train()
    if z_e.isfinite().all():  # or the loss, which comes next, says so
        model.vq.set_codebook(kmeans(z_e.movedim(1, -1).flatten(0, -2), num_embeddings, seed))


def fit_prior(
    prior: CausalPrior, codes: Tensor, labels: Tensor | None, *, ranks: Ranks, **settings
) -> History:
    """Trains a prior on codes ``(N, H, W)`` and labels ``(N,)`` by cross-entropy.

    ``settings`` are those of ``fit``. The history has loss (nats a code) and bits a code.
    """

    def loss_of(step: int, rows: Tensor) -> dict[str, Tensor]:
        batch = codes[rows].to(ranks.device)
        logits = prior(batch, None if labels is None else labels[rows].to(ranks.device))
        loss = F.cross_entropy(logits, batch)
        return {"loss": loss, "bits_per_code": loss.detach() / math.log(2)}

    return fit(prior, loss_of, len(codes), ranks=ranks, label="prior", **settings)
