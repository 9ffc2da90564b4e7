"""Moving averages of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


def weights_of(model: nn.Module) -> Weights:
    """A copy of the state of a model."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class Averages:
    """Exponential moving averages of all of a model's parameters and buffers.

    Buffers, such as the statistics of batch normalisation and a codebook with ``decay``, go with the weights
    that they were made by, so they are averaged alike; integers and truth values are the last ones.

    Args:
        model: the averages start as its weights.
        decay: of the averages; less in the first steps, ``(1 + step) / (10 + step)``, so that they soon
            forget where they started.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = weights_of(model)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the averages towards the weights after a step."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            average = self.weights[name]
            if tensor.is_floating_point():
                average.lerp_(tensor, share)
            else:
                average.copy_(tensor)

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averages for weights."""
        own = weights_of(model)
        put(self.weights, model)
        try:
            yield
        finally:
            put(own, model)


@torch.no_grad()
def put(weights: Weights, model: nn.Module) -> None:
    """Copies weights into a model."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(weights[name])
