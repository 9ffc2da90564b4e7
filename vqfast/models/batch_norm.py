"""Batch normalisation over all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vqfast.nn import ranks


class _SumOverRanks(torch.autograd.Function):
    """all_reduce with its gradient: each rank's loss depends on all ranks' terms, so gradients add up too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _sum_over_ranks(*grad_outputs)


def _sum_over_ranks(x: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(x)  # type: ignore[no-untyped-call]
    return total


class BatchNorm2d(nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d``, in training over the joined batch of all ranks, whose shares may differ.

    Source: Ioffe and Szegedy 2015, "Batch Normalization" (arXiv 1502.03167), algorithm 1. It does what
    ``torch.nn.SyncBatchNorm`` does, which doesn't run on a CPU. Input and output are floating point,
    ``(B, C, H, W)``.

    Raises:
        ValueError: the input hasn't four dimensions, or has one value a channel in training in one process.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)  # affine, with running statistics: forward relies on both

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and ranks.several()):
            return super().forward(input)
        self._check_input_dim(input)
        y = input.to(torch.promote_types(input.dtype, torch.float32)).movedim(1, -1)
        local = torch.cat([y.sum((0, 1, 2)), y.new_tensor([y[..., 0].numel()])])
        sums = _sum_over_ranks(local)
        count = sums[-1:]
        mean = sums[:-1] / count
        y = y - mean  # before squaring: E[x^2] - E[x]^2 would cancel
        var = _sum_over_ranks(y.square().sum((0, 1, 2))) / count
        with torch.no_grad():
            unbiased = var * count / (count - 1)
            own: Any = self  # torch's annotations leave these optional
            own.running_mean.lerp_(mean.to(own.running_mean.dtype), own.momentum)
            own.running_var.lerp_(unbiased.to(own.running_var.dtype), own.momentum)
            own.num_batches_tracked.add_(1)
        normalised: Tensor = y * (var + self.eps).rsqrt() * self.weight + self.bias
        return normalised.movedim(-1, 1).to(input.dtype)
