"""Rejection: a classifier keeps the samples that it finds likely of their class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.checks import check_number
from vqfast.data import Dataset
from vqfast.models import Autoencoder, Classifier
from vqfast.pipeline.checkpoint import load_model
from vqfast.pipeline.coding import results, weights_digest
from vqfast.pipeline.items import decode_items, together
from vqfast.pipeline.loop import Share, Task
from vqfast.pipeline.options import Training
from vqfast.pipeline.parts import HELD_OUT, TRAIN, reopen_parts
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.run import Run
from vqfast.pipeline.training import begin_training, train_once
from vqfast.pipeline.validation import validation_of

TRAINING = Training(batch_size=64, lr=1e-3)
ATTEMPTS = 100  # draws of one sample


def train_classifier(run: Run, *, training: Training = TRAINING, ranks: Ranks = ALONE) -> Classifier:
    """Trains a classifier on the data and labels of a run, for ``Rejection``.

    Args:
        run: a trained run whose data has labels.
        training: how it is trained; the held-out figure is the share of wrong answers.
        ranks: the processes that work together.

    Returns:
        The trained classifier, in eval mode. It lies in ``classifier.safetensors``.

    Raises:
        FileNotFoundError: the run isn't trained.
        ValueError: the data has no labels, or has changed; or the run has a classifier with other settings.
    """
    parts = reopen_parts(run, ranks)
    train, held_out = parts[TRAIN], parts[HELD_OUT]
    if train.labels is None or train.num_classes is None:
        raise ValueError("the run's data has no labels; want some for a classifier")
    torch.manual_seed(training.seed)
    network = Classifier(train.shape[0], train.num_classes, ndim=len(train.shape) - 1).to(ranks.device)
    settings = {"data": train.fingerprint, **training.settings(len(train))}
    begin_training(run, "classifier", settings, ranks)

    def measure() -> dict[str, float]:
        wrong = _logits(network, held_out, ranks).argmax(1) != torch.from_numpy(cast(Any, held_out.labels))
        return {"held_out_errors": wrong.double().mean().item()}

    validation = validation_of(training, "held_out_errors", measure)
    make_task = partial(_classifier_task, network, train, ranks)
    train_once(run, "classifier", network, make_task, training, validation=validation, ranks=ranks)
    return cast(Classifier, load_model(run.folder, "classifier", device=ranks.device))


def _classifier_task(network: Classifier, dataset: Dataset, ranks: Ranks) -> Task:
    labels = torch.from_numpy(cast(Any, dataset.labels))

    def batch(share: Share) -> tuple[Tensor, Tensor]:
        return dataset.batch(share.numbers), labels[share.numbers]

    def metrics(step: int, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, own = (tensor.to(ranks.device) for tensor in batch)
        logits = network(x)
        return {"loss": F.cross_entropy(logits, own), "errors": (logits.argmax(1) != own).double().mean()}

    return Task("classifier", len(dataset), batch, metrics)


def _logits(network: Classifier, dataset: Dataset, ranks: Ranks) -> Tensor:
    def work(numbers: range) -> list[Tensor]:
        return [network(dataset.batch(numbers).to(ranks.device))]

    return torch.cat([logits for (logits,) in results(work, range(len(dataset)))])


@dataclass(frozen=True)
class Rejection:
    """Which samples are drawn anew: those that a classifier finds unlikely of their class.

    Source: Razavi et al. 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2", section 3.3.

    Args:
        vqvae: decodes the samples.
        classifier: items ``(n, C, *spatial)`` -> logits ``(n, num_classes)``.
        minimum: the probability of its class that a sample needs, above 0 and below 1.
        note: identifies the classifier.
        device: where they are.

    Raises:
        TypeError, ValueError: ``minimum`` is no number, or out of range.
    """

    vqvae: Autoencoder
    classifier: Callable[[Tensor], Tensor]
    minimum: float
    note: str
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        check_number("reject", self.minimum, above=0, below=1)

    @classmethod
    def of_run(cls, run: Run, vqvae: Autoencoder, minimum: float, ranks: Ranks = ALONE) -> Rejection:
        """By the run's own classifier.

        Raises:
            FileNotFoundError: it isn't trained.
        """
        classifier = cast(Classifier, load_model(run.folder, "classifier", device=ranks.device))
        return cls(vqvae, classifier, minimum, weights_digest(run, "classifier"), ranks.device)

    def drawn(
        self, draw: Callable[[Tensor, int], Sequence[Tensor]], labels: Tensor, first: int = 0
    ) -> tuple[list[Tensor], Tensor]:
        """Samples that the classifier accepts.

        Args:
            draw: places of samples, int64 ``(n,)``, and how often they were rejected -> their grids of codes.
            labels: int64 ``(N,)``, the classes of the samples.
            first: the number of the first sample; ``decode`` may draw an item by its number.

        Returns:
            The grids of codes of each level, and how many draws of each sample were rejected, int64 ``(N,)``.

        Raises:
            ValueError: a sample was rejected ``ATTEMPTS`` times.
        """
        left, rejected = torch.arange(len(labels)), torch.zeros(len(labels), dtype=torch.int64)
        accepted: list[Tensor] = []
        for attempt in range(ATTEMPTS):
            levels = draw(left, attempt)
            accepted = accepted or [indices.clone() for indices in levels]
            for kept, indices in zip(accepted, levels, strict=True):
                kept[left] = indices
            left = left[~self.accepts(levels, labels[left], first + left)]
            rejected[left] += 1
            if len(left) == 0:
                return accepted, rejected
        likely = f"of {ATTEMPTS} draws of a sample none has probability {self.minimum} of class"
        raise ValueError(f"{likely} {labels[left[0]].item()}; want a lower reject, or a better prior")

    def accepts(self, levels: Sequence[Tensor], labels: Tensor, numbers: Tensor) -> Tensor:
        """Whether each sample, of these numbers, is likely of its class: bool ``(n,)``."""

        def work(batch: range) -> list[Tensor]:
            places = slice(batch.start, batch.stop)
            grids, own = [indices[places].to(self.device) for indices in levels], labels[places]
            items = decode_items(self.vqvae, grids, own, numbers[places].tolist())
            p = self.classifier(items).softmax(1)
            return [p.gather(1, own[:, None].to(self.device))[:, 0] >= self.minimum]

        size = together(self.vqvae, levels[0].shape[1:])
        return torch.cat([accepted for (accepted,) in results(work, range(len(labels)), size)])
