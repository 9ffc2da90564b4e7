"""Outputs by ours, derivatives by the original, which runs only if they are asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Run = Callable[[Tensor], tuple[Tensor, ...]]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fast, slow, *tensors):
        ctx.slow = slow
        ctx.save_for_backward(*tensors)
        outputs = fast(tensors[0])
        ctx.mark_non_differentiable(*(output for output in outputs if not output.is_floating_point()))
        return outputs

    @staticmethod
    def backward(ctx, *grads):
        x, *weights = ctx.saved_tensors
        again = torch.is_grad_enabled()  # whether these are to be differentiated too
        if not again:
            x = x.detach().requires_grad_(ctx.needs_input_grad[2])
        with torch.enable_grad():
            outputs = ctx.slow(x)
        pairs = [pair for pair in zip(outputs, grads, strict=True) if pair[0].requires_grad]
        inputs = [tensor for tensor in (x, *weights) if tensor.requires_grad]
        returned, given = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(returned, inputs, given, create_graph=again, allow_unused=True))
        return None, None, *(next(found) if tensor.requires_grad else None for tensor in (x, *weights))


def recomputed(fast: Run, slow: Run, x: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    """``fast(x)``, with the derivatives of ``slow(x)`` by ``x`` and by ``weights``, which both read."""
    return _Recomputed.apply(fast, slow, x, *weights)
