"""Step 4: new codes from the prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqfast.checks import check_integer
from vqfast.pipeline.codes import CodeGrids, shard_of, stage_codes
from vqfast.pipeline.coding import weights_digest
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.run import Run
from vqfast.pipeline.shards import Advance, write_shards
from vqfast.priors.base import CausalPrior

OfSamples = Callable[[range], Tensor]  # numbers of samples -> a tensor with an entry for each


@dataclass(frozen=True)
class SampleRequest:
    """The samples to draw.

    Args:
        num: how many.
        shape: of a grid of codes, such as ``(H, W)``.
        labels: one label for all samples; or a function that gives int64 labels ``(n,)``; by default the
            classes take turns, if the prior has any.
        known: a function that gives int64 codes ``(n, *shape)`` to keep, -1 where to sample.
        note: JSON values that identify what the functions give.

    Raises:
        TypeError, ValueError: ``num`` is no positive integer.

    >>> SampleRequest(num=100, shape=(8, 8), labels=3).shape
    (8, 8)
    """

    num: int
    shape: tuple[int, ...]
    labels: int | OfSamples | None = None
    known: OfSamples | None = None
    note: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_integer("num", self.num)


def check_label(prior: CausalPrior, label: int | None) -> None:
    """Checks that a label for all samples is a class of a prior, or None.

    Raises:
        TypeError: it is no integer.
        ValueError: there is no such class.
    """
    if label is None:
        return
    if prior.num_classes is None:
        raise ValueError(f"labels is {label!r}; want None: the prior has no classes")
    check_integer("labels", label, 0, prior.num_classes - 1)


def sample(
    run: Run,
    prior: CausalPrior,
    request: SampleRequest,
    *,
    out: Run | None = None,
    ranks: Ranks = ALONE,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    method: str = "auto",
    batch_size: int = 256,
) -> CodeGrids:
    """Step 4: draws codes from the prior; they and any labels lie in shards under ``samples``.

    Shards that are there aren't made again. ``train_vqvae`` has an example.

    Args:
        run: the run of the prior.
        prior: the run's, on the device of ``ranks``.
        request: the samples to draw.
        out: where the samples go; by default into the run.
        ranks: the processes that work together.
        seed, temperature, top_k, top_p, method, batch_size: see ``CausalPrior.sample``.

    Returns:
        The samples.

    Raises:
        TypeError, ValueError: see ``CausalPrior.sample``; or the folder has samples with other settings.
    """
    out = out or run
    labels_of = _labels(prior, request.labels)
    label = None if callable(request.labels) else request.labels
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    options |= {"method": method, "batch_size": batch_size}
    positions = math.prod(request.shape)

    def make(numbers: range, advance: Advance) -> dict[str, np.ndarray]:
        sources = {"labels": labels_of, "known": request.known}
        given: dict[str, Any] = {name: of(numbers) for name, of in sources.items() if of is not None}
        indices = prior.sample(
            len(numbers),
            request.shape,
            numbers=torch.arange(numbers.start, numbers.stop),
            progress=lambda drawn: advance(drawn / positions),
            **given,
            **options,
        )
        labels = given["labels"].numpy() if "labels" in given else None
        return shard_of([indices], [prior.num_embeddings], labels)

    weights = [weights_digest(run, "vqvae"), weights_digest(run, "prior")]
    settings = {"num": request.num, "shape": request.shape, "label": label, **request.note, **options}
    out.begin("samples", {**settings, "weights": weights}, ranks=ranks)
    write_shards(out.folder / "samples", request.num, ranks, label="sample", item="sample", make=make)
    return stage_codes(out, "samples")


def _labels(prior: CausalPrior, labels: int | OfSamples | None) -> OfSamples | None:
    if callable(labels):
        return labels
    check_label(prior, labels)
    classes = prior.num_classes
    if classes is None:
        return None
    if labels is None:
        return lambda numbers: torch.arange(numbers.start, numbers.stop) % classes
    return lambda numbers: torch.full((len(numbers),), labels)
