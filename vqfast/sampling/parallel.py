"""A sampling program at all positions at once: its definition, for codes that are known."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vqfast.sampling.activations import activate
from vqfast.sampling.program import CODES, CONDITION, Offset, Program


def shifted(value: Tensor, tap: Offset) -> Tensor:
    """``value[:, y + dy, x + dx]`` of ``(B, H, W, C)``, zero outside of the grid."""
    (dy, dx), (height, width) = tap, value.shape[1:3]
    padded = F.pad(value, (0, 0, max(-dx, 0), max(dx, 0), max(-dy, 0), max(dy, 0)))
    return padded[:, max(dy, 0) :, max(dx, 0) :][:, :height, :width]


def logits(
    program: Program,
    weights: dict[str, Tensor],
    codes: Tensor,
    labels: Tensor | None = None,
    condition: Tensor | None = None,
) -> Tensor:
    """Logits ``(B, K, H, W)`` of int64 codes ``(B, H, W)``, labels ``(B,)`` and a map ``(B, C, H, W)``."""
    some = next(iter(weights.values()))
    values = {CODES: F.one_hot(codes, program.num_embeddings).to(some.dtype)}
    if condition is not None:
        values[CONDITION] = condition.movedim(1, -1)
    for number, step in enumerate(program.steps):
        total = some.new_zeros(*codes.shape, step.width)
        for term in step.terms:
            for i, tap in enumerate(term.taps):
                value = shifted(values[term.source], tap)
                total = total + (value if term.weight is None else value @ weights[term.weight][i])
        if step.bias is not None:
            total = total + weights[step.bias]
        if step.label_bias is not None:
            total = total + weights[step.label_bias][labels][:, None, None]
        total = activate(total, step.activation)
        values[number] = total if step.residual is None else total + values[step.residual]
    return values[number].movedim(-1, 1)
