"""Step 3: the prior is trained on the codes of a run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.checks import check_choice
from vqfast.pipeline.checkpoint import load_model
from vqfast.pipeline.codes import stage_codes
from vqfast.pipeline.loop import fit
from vqfast.pipeline.measures import bits_per_code
from vqfast.pipeline.parts import HELD_OUT, TRAIN, reopen_parts
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.run import Run
from vqfast.pipeline.training import begin_training, check_seed, num_steps, train_once, validating
from vqfast.pipeline.validation import History, Validation
from vqfast.priors import PixelCNN, ResidualPixelCNN
from vqfast.priors.base import CausalPrior

PRIORS: dict[str, type[CausalPrior]] = {"gated": PixelCNN, "residual": ResidualPixelCNN}


def train_prior(
    run: Run,
    *,
    prior: str = "gated",
    prior_options: Mapping[str, Any] | None = None,
    use_labels: bool = True,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int = 64,
    lr: float = 3e-4,
    seed: int = 0,
    val_every: int | None = None,
    patience: int | None = None,
    tensorboard: str | Path | None = None,
    ranks: Ranks = ALONE,
) -> CausalPrior:
    """Step 3: trains a prior on the codes of a run. A run that has a trained one gives it back at once.

    Args:
        run: a run whose codes are encoded.
        prior: ``"gated"`` (``PixelCNN``) or ``"residual"`` (``ResidualPixelCNN``).
        prior_options: arguments of that class.
        use_labels: whether the prior learns each class, where the codes have labels.
        steps, epochs, batch_size, lr, seed, val_every, patience, tensorboard, ranks: see
            ``train_vqvae``; the held-out figure is bits per code.

    Returns:
        The trained prior, in eval mode. It lies in ``prior.safetensors``, its curves in ``prior.png`` and
        ``prior.csv``.

    Raises:
        FileNotFoundError: the run has no VQ-VAE or no codes.
        TypeError, ValueError: an argument is of the wrong type or out of range, a file is damaged, or the run
            has a prior with other settings.
    """
    check_seed(seed)
    check_choice("prior", prior, PRIORS)
    options = dict(prior_options or {})
    unknown = options.keys() - inspect.signature(PRIORS[prior]).parameters.keys()
    if unknown:
        raise ValueError(f"prior_options has {', '.join(sorted(unknown))}; want options of the {prior} prior")
    (num_embeddings,) = load_model(run.folder, "vqvae").codebook_sizes
    held_out = stage_codes(run, f"codes/{HELD_OUT}")  # refuses a run that isn't encoded to the end
    (indices,), labels = stage_codes(run, f"codes/{TRAIN}").all()
    labels = labels if use_labels else None
    num_classes = None if labels is None else reopen_parts(run)[TRAIN].num_classes
    torch.manual_seed(seed)
    network = PRIORS[prior](num_embeddings, num_classes=num_classes, **options)
    steps = num_steps(steps, epochs, len(indices), batch_size)
    training: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
    settings = {"codes": run.settings(f"codes/{TRAIN}"), "prior": prior, "num_classes": num_classes}
    begin_training(
        run, "prior", {**settings, **options, **training, **validating(val_every, patience)}, ranks
    )

    def measure() -> dict[str, float]:
        return {"held_out_bits_per_code": bits_per_code(network, held_out, ranks=ranks).mean().item()}

    validation = Validation(measure, "held_out_bits_per_code", val_every, patience) if val_every else None

    train = partial(fit_prior, network, indices, labels, validation=validation, **training)
    train_once(run, "prior", network, ranks, train, tensorboard)
    return load_model(run.folder, "prior", device=ranks.device)


def fit_prior(
    prior: CausalPrior, indices: Tensor, labels: Tensor | None, *, ranks: Ranks, **options: Any
) -> History:
    """Trains a prior on grids of codes by cross-entropy.

    Args:
        indices: int64 ``(N, *shape)``.
        labels: int64 ``(N,)`` or None.
        options: see ``fit``.

    Returns:
        The history: loss (nats for a code) and bits_per_code.
    """

    def metrics_of(step: int, numbers: Tensor) -> dict[str, Tensor]:
        batch = indices[numbers].to(ranks.device)
        logits = prior(batch, None if labels is None else labels[numbers].to(ranks.device))
        loss = F.cross_entropy(logits, batch)
        return {"loss": loss, "bits_per_code": loss.detach() / math.log(2)}

    return fit(prior, metrics_of, len(indices), ranks=ranks, label="prior", **options)
