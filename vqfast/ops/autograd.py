"""Second derivatives: a backward op is differentiated through its definition in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from vqfast.ops.define import register_autograd


def differentiate_through(op: OpOverload[..., Any], reference: Callable[..., Any]) -> None:
    """Gives ``op`` the gradient of ``reference``, its definition, which the backward pass computes anew."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
        ctx.constants = [value for value in inputs if not isinstance(value, Tensor)]
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))

    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        tensors, constants = iter(ctx.saved_tensors), iter(ctx.constants)
        inputs = [next(tensors) if is_tensor else next(constants) for is_tensor in ctx.is_tensor]
        needs_grad = ctx.needs_input_grad[: len(inputs)]
        again = torch.is_grad_enabled()  # a third derivative was asked for
        with torch.enable_grad():
            # aliases, so that the gradient stops at each input even where one was computed from another
            inputs = [
                (value.view_as(value) if again and needed else value.detach().requires_grad_(needed))
                if isinstance(value, Tensor)
                else value
                for value, needed in zip(inputs, needs_grad, strict=True)
            ]
            outputs = reference(*inputs)
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            pairs = [(o, g) for o, g in zip(outputs, grad_outputs, strict=True) if o.requires_grad]
        differentiated = [value for value, needed in zip(inputs, needs_grad, strict=True) if needed]
        outs, grads = zip(*pairs, strict=True) if pairs else ((), ())
        found = iter(
            torch.autograd.grad(outs, differentiated, grads, allow_unused=True, create_graph=again)
            if outs
            else [None] * len(differentiated)
        )
        return tuple(next(found) if needed else None for needed in needs_grad)

    register_autograd(op, backward, setup_context, reference)
