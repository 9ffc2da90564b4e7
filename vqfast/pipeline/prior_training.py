"""Step 3: the priors of all levels are trained on the codes of a run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.checks import check_choice, check_integer
from vqfast.models import Autoencoder
from vqfast.pipeline.checkpoint import load_model
from vqfast.pipeline.codes import stage_codes
from vqfast.pipeline.levels import Prior, given, level_name, level_of
from vqfast.pipeline.loop import Share, Task
from vqfast.pipeline.measures import bits_per_code
from vqfast.pipeline.options import PriorTraining, Training
from vqfast.pipeline.parts import HELD_OUT, TRAIN, noted_num_actions, reopen_parts
from vqfast.pipeline.priors import load_prior
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.run import Run
from vqfast.pipeline.training import begin_training, train_once
from vqfast.pipeline.validation import validation_of
from vqfast.pipeline.video_actions import given_actions, num_actions_of_grids
from vqfast.priors import ClipPrior, ConditionedPrior, PixelCNN, PixelSNAIL, ResidualPixelCNN, WaveNet
from vqfast.priors.base import CausalPrior

TRAINING = PriorTraining()
PRIORS: dict[str, type[CausalPrior] | type[ClipPrior]] = {
    "gated": PixelCNN,
    "residual": ResidualPixelCNN,
    "snail": PixelSNAIL,
    "wavenet": WaveNet,
    "clips": ClipPrior,
}
SET = (
    "num_embeddings",
    "num_quantizers",
    "num_classes",
    "num_actions",
    "condition_channels",
    "condition_stride",
)  # arguments of a prior that the run determines


def train_priors(
    run: Run,
    *,
    level: int | None = None,
    prior: str | None = None,
    prior_options: Mapping[str, Any] | None = None,
    condition_channels: int = 64,
    condition_blocks: int = 2,
    use_labels: bool = True,
    use_actions: bool = True,
    training: Training = TRAINING,
    ranks: Ranks = ALONE,
) -> list[Prior]:
    """Step 3: trains a prior for each level of codes of a run. One that is trained stays as it is.

    The prior of a finer level is conditioned on the codes of all coarser levels, by a network that is trained
    with it: see ``ConditionedPrior``.

    Args:
        run: a run whose codes are encoded.
        level: the only level to train, 0 for the coarsest; by default all, one after the other.
        prior: ``"gated"`` (``PixelCNN``, the default), ``"residual"`` (``ResidualPixelCNN``) or ``"snail"``
            (``PixelSNAIL``); of sequences ``"wavenet"`` (``WaveNet``), of clips ``"clips"`` (``ClipPrior``).
        prior_options: arguments of that class.
        condition_channels, condition_blocks: channels of the conditioning networks, and their residual blocks
            for each coarser level.
        use_labels: whether the priors learn each class, where the codes have labels.
        use_actions: whether a prior of clips learns what each action does, where the clips have actions.
        training: how each is trained; the held-out figure is bits per code.
        ranks: the processes that work together.

    Returns:
        The trained priors from the coarsest level, in eval mode. They lie in ``prior.safetensors``,
        ``prior-1.safetensors`` and so on, their curves in ``prior.png`` and ``prior.csv``.

    Raises:
        FileNotFoundError: the run has no VQ-VAE or no codes.
        TypeError, ValueError: an argument is of the wrong type or out of range, a file is damaged, or the run
            has a prior with other settings.
    """
    check_integer("condition_channels", condition_channels)
    check_integer("condition_blocks", condition_blocks, 0)
    vqvae = load_model(run.folder, "vqvae")
    kinds = [name for name, kind in PRIORS.items() if kind.ndim == vqvae.ndim]
    prior = kinds[0] if prior is None else prior
    check_choice("prior", prior, kinds)
    arguments = inspect.signature(PRIORS[prior]).parameters.keys()
    several = any(hasattr(quantizer, "num_quantizers") for quantizer in vqvae.quantizers)
    if several and "num_quantizers" not in arguments:
        raise ValueError(f"prior is {prior!r}; want 'gated', since each position has several codes")
    options = dict(prior_options or {})
    unknown = options.keys() - (arguments - {*SET})
    if unknown:
        raise ValueError(f"prior_options has {', '.join(sorted(unknown))}; want options of the {prior} prior")
    num_levels = len(vqvae.codebook_sizes)
    check_integer("level", level, 0, num_levels - 1, optional=True)
    held_out = stage_codes(run, f"codes/{HELD_OUT}")  # refuses a run that isn't encoded to the end
    codes = stage_codes(run, f"codes/{TRAIN}")
    grids, labels = codes.all()
    labels = labels if use_labels else None
    actions = codes.actions(range(codes.num)) if use_actions else None
    num_classes = None if labels is None else reopen_parts(run, ranks)[TRAIN].num_classes
    settings = {"codes": run.settings(f"codes/{TRAIN}"), "prior": prior, "num_classes": num_classes}
    settings |= {**options, **training.settings(len(grids[0]))}
    acting: dict[str, Any] = {}
    if actions is not None:
        acting["num_actions"] = num_actions_of_grids(vqvae, noted_num_actions(run))
    conditioning = {"condition_channels": condition_channels, "condition_blocks": condition_blocks}

    def train(number: int) -> None:
        name = level_name("prior", number)
        torch.manual_seed(training.seed)
        sizes: dict[str, Any] = {"num_classes": num_classes, **acting}
        if several:
            sizes["num_quantizers"] = getattr(vqvae.quantizers[number], "num_quantizers", None)
        make = partial(PRIORS[prior], vqvae.codebook_sizes[number], **sizes, **options)
        network = make() if number == 0 else _conditioned(make, vqvae, number, **conditioning)
        network.to(ranks.device)
        begin_training(run, name, settings | acting | (conditioning if number else {}), ranks)

        def measure() -> dict[str, float]:
            return {"held_out_bits_per_code": bits_per_code([network], held_out, ranks=ranks).mean().item()}

        validation = validation_of(training, "held_out_bits_per_code", measure)
        make_task = partial(prior_task, network, grids, labels, ranks, actions=actions)
        train_once(run, name, network, make_task, training, validation=validation, ranks=ranks)

    trained = range(num_levels) if level is None else [level]
    for number in trained:
        train(number)
    return [load_prior(run, number, device=ranks.device) for number in trained]


def _conditioned(
    make: partial[Any],
    vqvae: Autoencoder,
    level: int,
    *,
    condition_channels: int,
    condition_blocks: int,
) -> Prior:
    """A new prior of a finer level of a model."""
    strides = [stride // vqvae.strides[level] for stride in vqvae.strides[:level]]
    return ConditionedPrior(
        make(condition_channels=condition_channels),
        vqvae.codebook_sizes[:level],
        strides,
        num_residual_blocks=condition_blocks,
    )


def prior_task(
    prior: Prior,
    grids: Sequence[Tensor],
    labels: Tensor | None,
    ranks: Ranks,
    *,
    actions: Tensor | None = None,
) -> Task:
    """What a prior learns: the codes of its level, by cross-entropy.

    Its figures are loss (nats for a code) and bits_per_code.

    Args:
        grids: int64 ``(N, *shape)`` of each level.
        labels: int64 ``(N,)`` or None.
        actions: of clips int64 ``(N, T)``, or None.
    """
    level = level_of(prior)

    def batch(share: Share) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        levels = [indices[share.numbers] for indices in grids[: level + 1]]
        own, led = (None if of_items is None else of_items[share.numbers] for of_items in (labels, actions))
        return levels, own, led

    def metrics(step: int, batch: tuple[list[Tensor], Tensor | None, Tensor | None]) -> dict[str, Tensor]:
        levels = [indices.to(ranks.device) for indices in batch[0]]
        own, led = (None if of_items is None else of_items.to(ranks.device) for of_items in batch[1:])
        taken = given(prior, levels) | given_actions(prior, led)
        logits = prior(levels[level].clamp(min=0), own, **taken)
        loss = F.cross_entropy(logits, levels[level], ignore_index=-1)  # -1 after the end of an item
        return {"loss": loss, "bits_per_code": loss.detach() / math.log(2)}

    return Task(level_name("prior", level), len(grids[0]), batch, metrics)
