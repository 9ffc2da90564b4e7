"""The options of a training: each has its one default and its one check here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from vqfast.checks import INT64_MAX, check_choice, check_flags, check_integer, check_number

STEPS = 10_000  # of a training, unless steps or epochs says otherwise

SCHEDULES = ("cosine", "linear", "constant", "onecycle")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# the words of earlier versions
EARLIER_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

# of a field: the trained weights don't depend on it, so that a run may go on with another value
FREE = {"free": True}


def in_present_words(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a training, which an earlier version may have written down.

    >>> in_present_words({"precision": "bf16", "steps": 3})
    {'precision': 'bfloat16', 'steps': 3}
    """
    word = options.get("precision")
    if not isinstance(word, str):
        return options
    return {**options, "precision": EARLIER_PRECISIONS.get(word, word)}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a VQ-VAE is trained.

    Args:
        steps: how many steps the training has, 10,000 unless ``epochs`` is given. A run goes on when more are
            asked for, from there with the schedule of the new length.
        epochs: how often the training sees each item, in place of ``steps``; may be a fraction.
        batch_size: items in a step, over all processes.
        lr: the highest learning rate.
        schedule: how the learning rate decays after the warm-up: ``"cosine"`` or ``"linear"`` to 0, or not at
            all (``"constant"``). ``"onecycle"`` rises and decays as torch's OneCycleLR, which moves Adam's
            first beta too.
        warmup: steps in which the learning rate rises linearly.
        optimizer: ``"adam"``, whose weight decay is part of the gradient, or ``"adamw"``.
        weight_decay: of all parameters.
        clip: gradients whose norm, of all parameters together, exceeds it are scaled down to it; None leaves
            them as they are.
        ema: the decay of moving averages of all weights. They are measured on held-out data and saved in
            place of the last weights; None: there are none.
        precision: ``"float32"``, or ``"bfloat16"`` or ``"float16"`` for mixed precision: the matrix products
            and convolutions of training have these floats, the weights stay float32.
        compile: trains the model by ``torch.compile``.
        workers: threads that read batches ahead; with 0 each is read when it is needed.
        seed: fixes the weights and the batches; in 0..2^32 - 1.
        val_every: measures the held-out part after every so many steps, and keeps the weights that are best
            there; None keeps the last weights.
        patience: ends the training after so many measurements without a better one.
        tensorboard: a folder for TensorBoard's events, where it is installed.

    Raises:
        TypeError: an option is of the wrong type.
        ValueError: an option is out of range, or two exclude each other.

    >>> Training(epochs=3, batch_size=32).num_steps(1000)
    94
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 128
    lr: float = 1e-3
    schedule: str = "constant"
    warmup: int = 0
    optimizer: str = "adam"
    weight_decay: float = 0.0
    clip: float | None = None
    ema: float | None = None
    precision: str = "float32"
    compile: bool = False
    workers: int = field(default=0, metadata=FREE)
    seed: int = 0
    val_every: int | None = None
    patience: int | None = None
    tensorboard: str | Path | None = field(default=None, metadata=FREE)

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, optional=True)
        check_number("epochs", self.epochs, above=0, optional=True)
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs exclude each other; want one of them")
        check_integer("batch_size", self.batch_size)
        check_number("lr", self.lr, above=0)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_integer("warmup", self.warmup, 0)
        if self.warmup and self.schedule == "onecycle":
            raise ValueError(f"warmup is {self.warmup}; want 0 with schedule 'onecycle', which has its own")
        check_choice("optimizer", self.optimizer, ("adam", "adamw"))
        check_number("weight_decay", self.weight_decay, minimum=0)
        check_number("clip", self.clip, above=0, optional=True)
        check_number("ema", self.ema, minimum=0, below=1, optional=True)
        check_choice("precision", self.precision, PRECISIONS)
        check_flags(compile=self.compile)
        check_integer("workers", self.workers, 0)
        check_integer("seed", self.seed, 0, 2**32 - 1)  # torch's generator looks at the low 32 bits only
        check_integer("val_every", self.val_every, optional=True)
        check_integer("patience", self.patience, optional=True)
        if self.patience is not None and self.val_every is None:
            raise ValueError("patience goes with val_every")

    def num_steps(self, num: int) -> int:
        """How many steps a training on ``num`` items has.

        Raises:
            ValueError: ``epochs`` makes 2^63 steps or more.
        """
        if self.epochs is not None:
            steps = self.epochs * num / self.batch_size
            if steps > INT64_MAX:
                raise ValueError(f"epochs is {self.epochs!r}; want steps below 2^63")
            return math.ceil(steps)
        return STEPS if self.steps is None else self.steps

    def settings(self, num: int) -> dict[str, Any]:
        """What a run notes of a training on ``num`` items: the options that its weights depend on."""
        noted = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata != FREE}
        noted |= {"steps": self.num_steps(num), "epochs": None}
        return {name: value for name, value in noted.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class VideoTraining(Training):
    """How a model of video is trained: the options of ``Training``, with fewer items in a step.

    >>> VideoTraining().batch_size
    8
    """

    batch_size: int = 8


@dataclass(frozen=True, kw_only=True)
class PriorTraining(Training):
    """How a prior is trained: the options of ``Training``, some with other defaults.

    >>> Training().batch_size, PriorTraining().batch_size
    (128, 64)
    """

    batch_size: int = 64
    lr: float = 3e-4
    schedule: str = "cosine"
