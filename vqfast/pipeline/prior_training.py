"""Step 3: the prior is trained on the codes of a run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.checks import check_choice
from vqfast.pipeline.checkpoint import load_model
from vqfast.pipeline.codes import stage_codes
from vqfast.pipeline.loop import Share, Task
from vqfast.pipeline.measures import bits_per_code
from vqfast.pipeline.options import PriorTraining, Training
from vqfast.pipeline.parts import HELD_OUT, TRAIN, reopen_parts
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.run import Run
from vqfast.pipeline.training import begin_training, train_once
from vqfast.pipeline.validation import validation_of
from vqfast.priors import PixelCNN, ResidualPixelCNN
from vqfast.priors.base import CausalPrior

TRAINING = PriorTraining()
PRIORS: dict[str, type[CausalPrior]] = {"gated": PixelCNN, "residual": ResidualPixelCNN}


def train_prior(
    run: Run,
    *,
    prior: str = "gated",
    prior_options: Mapping[str, Any] | None = None,
    use_labels: bool = True,
    training: Training = TRAINING,
    ranks: Ranks = ALONE,
) -> CausalPrior:
    """Step 3: trains a prior on the codes of a run. A run that has a trained one gives it back at once.

    Args:
        run: a run whose codes are encoded.
        prior: ``"gated"`` (``PixelCNN``) or ``"residual"`` (``ResidualPixelCNN``).
        prior_options: arguments of that class.
        use_labels: whether the prior learns each class, where the codes have labels.
        training: how it is trained; the held-out figure is bits per code.
        ranks: the processes that work together.

    Returns:
        The trained prior, in eval mode. It lies in ``prior.safetensors``, its curves in ``prior.png`` and
        ``prior.csv``.

    Raises:
        FileNotFoundError: the run has no VQ-VAE or no codes.
        TypeError, ValueError: an argument is of the wrong type or out of range, a file is damaged, or the run
            has a prior with other settings.
    """
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
    torch.manual_seed(training.seed)
    network = PRIORS[prior](num_embeddings, num_classes=num_classes, **options).to(ranks.device)
    settings = {"codes": run.settings(f"codes/{TRAIN}"), "prior": prior, "num_classes": num_classes}
    begin_training(run, "prior", {**settings, **options, **training.settings(len(indices))}, ranks)

    def measure() -> dict[str, float]:
        return {"held_out_bits_per_code": bits_per_code(network, held_out, ranks=ranks).mean().item()}

    validation = validation_of(training, "held_out_bits_per_code", measure)
    make_task = partial(prior_task, network, indices, labels, ranks)
    train_once(run, "prior", network, make_task, training, validation=validation, ranks=ranks)
    return load_model(run.folder, "prior", device=ranks.device)


def prior_task(prior: CausalPrior, indices: Tensor, labels: Tensor | None, ranks: Ranks) -> Task:
    """What a prior learns: grids of codes, by cross-entropy.

    Its figures are loss (nats for a code) and bits_per_code.

    Args:
        indices: int64 ``(N, *shape)``.
        labels: int64 ``(N,)`` or None.
    """

    def batch(share: Share) -> tuple[Tensor, Tensor | None]:
        return indices[share.numbers], None if labels is None else labels[share.numbers]

    def metrics(step: int, batch: tuple[Tensor, Tensor | None]) -> dict[str, Tensor]:
        grids = batch[0].to(ranks.device)
        own = None if batch[1] is None else batch[1].to(ranks.device)
        loss = F.cross_entropy(prior(grids, own), grids)
        return {"loss": loss, "bits_per_code": loss.detach() / math.log(2)}

    return Task("prior", len(indices), batch, metrics)
