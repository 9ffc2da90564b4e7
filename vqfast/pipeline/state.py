"""All that changes while a model trains, and the file that it lies in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from vqfast.checks import check_integer
from vqfast.pipeline.averages import Averages, Weights, weights_of
from vqfast.pipeline.optimizing import make_optimizer
from vqfast.pipeline.options import Training
from vqfast.pipeline.validation import History
from vqfast.saving.storage import read_tensors, write_tensors


class State:
    """A model in training.

    Args:
        model: is trained in place.
        training: how.
        used: see ``Task``.
        device: of the model.

    Attributes:
        step: how many steps are done.
        history: see ``fit``.
        best: the weights that were best on held-out data, if any were measured.

    Raises:
        ValueError: the device has no such precision.
    """

    def __init__(
        self, model: nn.Module, training: Training, used: Mapping[str, Tensor], device: torch.device
    ) -> None:
        check_precision(training.precision, device)
        self.model, self.used = model, used
        self.optimizer = make_optimizer(model, training)
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "float16")
        self.averages = None if training.ema is None else Averages(model, training.ema)
        self.step = 0
        self.history: History = {}
        self.best: Weights = {}

    def save(self, file: Path) -> None:
        """Writes all of it to a safetensors file."""
        others = {f"best.{name}": t for name, t in self.best.items()}
        if self.averages is not None:
            others |= {f"average.{name}": t for name, t in self.averages.weights.items()}
        others |= {f"used.{name}": t for name, t in self.used.items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            others |= {f"adam.{number}.{name}": t for name, t in moments.items()}
        progress = {"step": self.step, "history": self.history, "scaler": self.scaler.state_dict()}
        text = torch.frombuffer(bytearray(json.dumps(progress).encode()), dtype=torch.uint8)
        own = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        write_tensors(file, {**own, "progress": text, **others})

    def weights(self) -> Weights:
        """A copy of the weights to be measured and kept: the averages, if there are any."""
        with nullcontext() if self.averages is None else self.averages.swapped_in(self.model):
            return weights_of(self.model)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Inside, the model has those weights and is in eval mode."""
        with nullcontext() if self.averages is None else self.averages.swapped_in(self.model):
            self.model.eval()
            yield
            self.model.train()

    def restore(self, file: Path, steps: int) -> None:
        """Reads what ``save`` wrote, of a training of no more than ``steps``.

        Raises:
            ValueError: the file is damaged or another training's.
        """
        tensors = read_tensors(file)
        try:
            progress = json.loads(bytes(tensors.pop("progress").tolist()))
            self.step, self.history = progress["step"], progress["history"]
            check_integer("step", self.step, 0, steps)
            if len({len([v is None or float(v) for v in column]) for column in self.history.values()}) > 1:
                raise ValueError("the history's columns differ in length")
            for name, mask in self.used.items():
                mask.copy_(tensors[f"used.{name}"])
            self.model.load_state_dict(_under("model", tensors))
            self.best = _under("best", tensors)
            if self.averages is not None:
                averages = _under("average", tensors)
                for name, tensor in self.averages.weights.items():
                    tensor.copy_(averages[name])
            if self.scaler.is_enabled() and progress["scaler"]:
                self.scaler.load_state_dict(progress["scaler"])
            self._restore_moments(_under("adam", tensors))
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is no state of this training; remove it to start anew") from error

    def _restore_moments(self, tensors: Weights) -> None:
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            number, moment = name.split(".")
            moments.setdefault(int(number), {})[moment] = tensor
        for place, found in moments.items():
            parameter = self.optimizer.param_groups[0]["params"][place]
            shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            if {name: tensor.shape for name, tensor in found.items()} != shapes:
                raise ValueError(f"moments {place} have other shapes")
            for name in shapes.keys() - {"step"}:  # the fused step reads them in the order of the weights
                found[name] = torch.empty_like(parameter).copy_(found[name])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def check_precision(precision: str, device: torch.device) -> None:
    """A precision that a device has.

    Raises:
        ValueError: it has not.
    """
    if precision == "float16" and device.type == "cpu":
        raise ValueError("precision is 'float16'; want 'float32' or 'bfloat16' on a CPU")
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError("precision is 'bfloat16'; want 'float32' or 'float16' on this GPU")


def _under(prefix: str, tensors: Weights) -> Weights:
    """The tensors under a prefix, by the rest of their names."""
    return {n.removeprefix(f"{prefix}."): t for n, t in tensors.items() if n.startswith(f"{prefix}.")}
