"""The logits of a sampling program at all positions at once, for codes that are known.

This is the definition of a program; an executor computes the same position by position.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.sampling.activations import activate
from vqfast.sampling.attention import Attention, attend
from vqfast.sampling.precision import rounded
from vqfast.sampling.program import CODES, CONDITION, Offset, Program


def shifted(value: Tensor, tap: Offset) -> Tensor:
    """``value[:, y + dy, x + dx]`` for all ``(y, x)`` of ``value (B, H, W, C)``; zero outside of the grid."""
    (dy, dx), (height, width) = tap, value.shape[1:3]
    padded = F.pad(value, (0, 0, max(-dx, 0), max(dx, 0), max(-dy, 0), max(dy, 0)))
    return padded[:, max(dy, 0) :, max(dx, 0) :][:, :height, :width]


def spread(value: Tensor, stride: int, height: int, width: int) -> Tensor:
    """A value of every ``stride``-th row and column, ``(B, H', W', C)``, on a grid that is zero elsewhere."""
    whole = value.new_zeros(len(value), height, width, value.shape[3])
    whole[:, ::stride, ::stride] = value
    return whole


def logits(
    program: Program,
    weights: dict[str, Tensor],
    codes: Tensor,
    labels: Tensor | None = None,
    condition: Tensor | None = None,
    precision: str | None = None,
) -> Tensor:
    """Logits of all codes.

    Args:
        program: what to compute.
        weights: the tensors that the program names.
        codes: int64 ``(B, H, W)``, or ``(B, H, W, S)`` with the S codes of each position.
        labels: int64 ``(B,)``, if the program has label biases.
        condition: ``(B, C, H, W)``, if the program reads ``CONDITION``; of a program with
            ``condition_stride`` its last size is W divided by that, rounded up.
        precision: of products, see ``rounded``.

    Returns:
        ``(B, K, H, W)``, or ``(B, K, H, W, S)``; of mixtures ``3 M`` channels in place of K.
    """
    weight = next(iter(weights.values()))
    by_code = codes.view(*codes.shape[:3], program.num_quantizers, 1).unbind(3)
    values = {source: each + 1 for source, each in zip(program.codes, by_code, strict=True)}  # 0 outside
    if condition is not None:
        repeated = condition.repeat_interleave(program.condition_stride, 3)[..., : codes.shape[2]]
        values[CONDITION] = repeated.movedim(1, -1)
    for number, step in enumerate(program.steps):
        if isinstance(step, Attention):
            query, key, value = (values[source].flatten(1, 2) for source in step.sources)
            values[number] = attend(step, query, key, value).view(*codes.shape[:3], -1)
            continue
        own = (slice(None), slice(None, None, step.stride), slice(None, None, step.stride))  # positions
        total = weight.new_zeros(*codes[own].shape[:3], step.width)
        for term in step.terms:
            for i, tap in enumerate(term.taps):
                value = shifted(values[term.source], tap)[own]
                if term.source <= CODES:  # a product with one-hot codes is a lookup
                    value = F.embedding(value[..., 0], F.pad(weights[term.weight or ""][i], (0, 0, 1, 0)))
                elif term.weight is not None:
                    value = rounded(value, precision) @ rounded(weights[term.weight][i], precision)
                total = total + value
        if step.bias is not None:
            total = total + weights[step.bias]
        if step.label_bias is not None:
            total = total + weights[step.label_bias][labels][:, None, None]
        total = activate(total, step.activation)
        total = total if step.residual is None else total + values[step.residual][own]
        values[number] = total if step.stride == 1 else spread(total, step.stride, *codes.shape[1:3])
    last = range(len(program.steps) - program.num_quantizers, len(program.steps))
    logits = torch.stack([values[number] for number in last], dim=3)
    return logits.movedim(-1, 1).reshape(len(codes), -1, *codes.shape[1:])
