"""The ops as ``functional`` calls them: while a model is exported to ONNX, their definitions run instead.

ONNX doesn't know the ops. ``torch.onnx.export`` runs this Python, with ``dynamo`` or without.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload

from vqfast.ops.define import straight
from vqfast.ops.masked_conv import op as masked_conv_op
from vqfast.ops.masked_conv import reference as masked_conv_reference
from vqfast.ops.nearest import op as nearest_op
from vqfast.ops.nearest.reference import divided
from vqfast.ops.residual import op as residual_op
from vqfast.ops.residual import reference as residual_reference

CHANNELS = 16  # of so many the differences are held at once

P = ParamSpec("P")
T = TypeVar("T")


def _exportable(op: OpOverload[P, T], definition: Callable[..., T]) -> Callable[P, T]:
    """``op``, or in an export to ONNX its definition."""
    plain = straight(op)

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        # the first two questions are quick
        exporting = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        return (definition if exporting and torch.onnx.is_in_onnx_export() else plain)(*args, **kwargs)

    return call


def _nearest(x: Tensor, codebook: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The reference's result, from blocks of channels, so that the number of vectors may vary.

    Squares of float64 numbers may over- or underflow.
    """
    codebook = divided(codebook, lengths)
    finite, unusable = x.isfinite().all(-1), ~codebook.isfinite().all(-1).unsqueeze(-2)
    x, codebook = x.double().unsqueeze(-2), codebook.double().unsqueeze(-3)
    blocks = [slice(first, first + CHANNELS) for first in range(0, int(codebook.shape[-1]), CHANNELS)]
    squares = [(x[..., block] - codebook[..., block]).square().sum(-1) for block in blocks]
    distances = torch.where(unusable, torch.inf, sum(squares[1:], squares[0]))
    return distances.argmin(-1) * finite


_stage = partial(residual_reference.quantize_stage, search=_nearest)

nearest = _exportable(nearest_op.nearest, _nearest)
quantize = _exportable(residual_op.quantize, partial(residual_reference.quantize, stage=_stage))
residual_codes = _exportable(
    residual_op.residual_codes, partial(residual_reference.residual_codes, search=_nearest)
)
projected_codes = _exportable(
    residual_op.projected_codes, partial(residual_reference.projected_codes, search=_nearest)
)
gate = _exportable(masked_conv_op.gate, masked_conv_reference.gate)
masked_conv2d = _exportable(masked_conv_op.masked_conv2d, masked_conv_reference.masked_conv2d)
embed = _exportable(masked_conv_op.embed, masked_conv_reference.embed)
