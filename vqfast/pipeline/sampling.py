"""Step 4: new codes from the prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqfast.checks import check_integer
from vqfast.models import LevelPrior
from vqfast.pipeline.codes import CodeGrids, shard_of, stage_codes
from vqfast.pipeline.coding import weights_digest
from vqfast.pipeline.levels import AnyPrior, given, level_name
from vqfast.pipeline.parts import HELD_OUT
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.rejection import Rejection
from vqfast.pipeline.run import Run
from vqfast.pipeline.shards import Advance, read_shards, write_shards
from vqfast.pipeline.video_actions import given_actions, taking_turns, wants_actions

# numbers of samples -> a tensor with an entry for each; or such a tensor for each level
OfSamples = Callable[[range], Tensor]
LevelsOfSamples = Callable[[range], Sequence[Tensor]]


@dataclass(frozen=True)
class SampleRequest:
    """The samples to draw.

    Args:
        num: how many.
        shapes: of the grid of codes of each level, from the coarsest, such as ``[(H, W)]``.
        labels: one label for all samples; or a function that gives int64 labels ``(n,)``; by default the
            classes take turns, if the prior has any.
        known: a function that gives int64 codes ``(n, *shape)`` to keep for each level, -1 where to sample;
            of clips perhaps of the first grids alone.
        ends: of sequences, a function that gives how many codes of each sample count, int64 ``(n,)``; -1
            stands behind them.
        actions: of clips, a function that gives the actions of their grids, int64 ``(n, T)``, -1 for unknown
            ones; by default those of the run's held-out clips, in turn.
        note: JSON values that identify what the functions give.

    Raises:
        TypeError, ValueError: ``num`` is no positive integer.

    >>> SampleRequest(num=100, shapes=[(8, 8)], labels=3).shapes
    [(8, 8)]
    """

    num: int
    shapes: Sequence[tuple[int, ...]]
    labels: int | OfSamples | None = None
    known: LevelsOfSamples | None = None
    ends: OfSamples | None = None
    actions: OfSamples | None = None
    note: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_integer("num", self.num)


def check_label(priors: Sequence[AnyPrior], label: int | None) -> None:
    """Checks that a label for all samples is a class of the priors, or None.

    Raises:
        TypeError: it is no integer.
        ValueError: there is no such class.
    """
    if label is None:
        return
    classes = classes_of(priors)
    if classes is None:
        raise ValueError(f"labels is {label!r}; want None: the prior has no classes")
    check_integer("labels", label, 0, classes - 1)


def classes_of(priors: Sequence[AnyPrior]) -> int | None:
    """The number of classes of the priors that have some; None if none has."""
    return next((prior.num_classes for prior in priors if prior.num_classes is not None), None)


def sample(
    run: Run,
    priors: Sequence[AnyPrior],
    request: SampleRequest,
    *,
    out: Run | None = None,
    ranks: Ranks = ALONE,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    precision: str | None = None,
    method: str = "auto",
    batch_size: int = 256,
    reject: Rejection | None = None,
) -> CodeGrids:
    """Step 4: draws codes from the priors; they and any labels lie in shards under ``samples``.

    The coarsest level is drawn first, then each finer one given those before it. Shards that are there aren't
    made again. ``train_vqvae`` has an example.

    Args:
        run: the run of the priors.
        priors: of each level from the coarsest, on the device of ``ranks``: see ``load_priors``.
        request: the samples to draw.
        out: where the samples go; by default into the run.
        ranks: the processes that work together.
        seed, temperature, top_k, top_p, precision, method, batch_size: see ``CausalPrior.sample``.
        reject: draws a sample anew until a classifier finds it likely of its class. The shards then have an
            array ``rejected``: how many draws of each sample were rejected, see ``num_rejected``.

    Returns:
        The samples.

    Raises:
        TypeError, ValueError: see ``CausalPrior.sample``; the request has another number of levels; or the
            folder has samples with other settings; or samples without classes are to be rejected.
    """
    out = out or run
    if len(request.shapes) != len(priors):
        raise ValueError(f"shapes has {len(request.shapes)} levels; want {len(priors)}, as many as priors")
    labels_of = _labels(priors, request.labels)
    label = None if callable(request.labels) else request.labels
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    options |= {"method": method, "batch_size": batch_size}
    if precision is not None:  # samples of earlier versions go on
        options["precision"] = precision
    positions = sum(map(math.prod, request.shapes))
    actions_of = _actions(run, priors, request)
    if reject is not None and labels_of is None:
        raise ValueError("reject is given; want None: the samples have no classes")

    def make(numbers: range, advance: Advance) -> dict[str, np.ndarray]:
        labels = None if labels_of is None else labels_of(numbers)
        known = [None] * len(priors) if request.known is None else request.known(numbers)
        ends = None if request.ends is None else request.ends(numbers)
        actions = None if actions_of is None else actions_of(numbers)

        def draw(places: Tensor, attempt: int) -> list[Tensor]:
            levels: list[Tensor] = []
            for level, prior in enumerate(priors):
                kept = known[level]
                indices = prior.sample(
                    len(places),
                    request.shapes[level],
                    labels=None if labels is None or prior.num_classes is None else labels[places],
                    known=None if kept is None else kept[places],
                    numbers=numbers.start + places + (attempt << 32),
                    progress=lambda drawn: advance(0 if attempt else drawn / positions),
                    **given(prior, levels),
                    **given_actions(prior, None if actions is None else actions[places]),
                    **{**options, "seed": _level_seed(seed, level)},
                )
                if ends is not None:
                    indices = indices.where(torch.arange(indices.shape[1]) < ends[places, None], -1)
                levels.append(indices)
            return levels

        if reject is None or labels is None:
            levels, more = draw(torch.arange(len(numbers)), 0), {}
        else:
            levels, rejected = reject.drawn(draw, labels, numbers.start)
            more = {"rejected": rejected.numpy()}
        sizes = [prior.num_embeddings for prior in priors]
        return shard_of(levels, sizes, None if labels is None else labels.numpy(), actions) | more

    trained = [level for level, prior in enumerate(priors) if not isinstance(prior, LevelPrior)]
    names = ["vqvae", *(level_name("prior", level) for level in trained)]
    settings = {"num": request.num, "shapes": request.shapes, "label": label, **request.note, **options}
    settings["weights"] = [weights_digest(run, name) for name in names]
    if reject is not None:
        settings["reject"] = {"minimum": reject.minimum, "classifier": reject.note}
    out.begin("samples", settings, ranks=ranks)
    write_shards(out.folder / "samples", request.num, ranks, label="sample", item="sample", make=make)
    return stage_codes(out, "samples")


def num_rejected(run: Run) -> int:
    """How many draws were rejected for the samples of a run.

    Raises:
        FileNotFoundError, ValueError: see ``stage_codes``.
    """
    num = stage_codes(run, "samples").num
    rejected = read_shards(run.folder / "samples", num, range(num)).get("rejected")
    return 0 if rejected is None else int(rejected.sum())


def _level_seed(seed: int, level: int) -> int:
    """The seed of a level's draws: the user's at the coarsest, others from it at the finer ones."""
    if level == 0:
        return seed
    return int(np.random.SeedSequence([seed, level]).generate_state(1, np.uint64)[0])


def _actions(run: Run, priors: Sequence[AnyPrior], request: SampleRequest) -> OfSamples | None:
    if not wants_actions(priors):
        return None
    return request.actions or taking_turns(stage_codes(run, f"codes/{HELD_OUT}"), request.shapes[0][0])


def _labels(priors: Sequence[AnyPrior], labels: int | OfSamples | None) -> OfSamples | None:
    if callable(labels):
        return labels
    check_label(priors, labels)
    classes = classes_of(priors)
    if classes is None:
        return None
    if labels is None:
        return lambda numbers: torch.arange(numbers.start, numbers.stop) % classes
    return lambda numbers: torch.full((len(numbers),), labels)
