"""``vqfast::residual_quantize``: all stages of a residual quantiser.

``z (B, D, *spatial)`` with its channels at ``channel_dim``, ``codebooks (Q, K, D)`` ->
``quantized`` (as ``z``), the sum of the stages' codes; ``indices`` int64 ``(B, *spatial, Q)``;
``codebook_losses`` and ``commitment_losses`` ``(Q,)`` (of one value, whose gradients go to that stage's
codebook and to ``z``); with ``statistics`` the ``counts`` int64 ``(Q, K)`` and ``sums`` ``(Q, K, D)`` of the
residuals of each code (else ``(Q, 0)`` and ``(Q, 0, D)``). Residuals are kept in float32 or wider.

``vqfast::residual_codes``: the indices alone, of a list of codebooks; ``vqfast::projected_codes``: of stages
that stand between maps. Neither has a gradient.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from vqfast.ops import registry
from vqfast.ops.autograd import differentiate_through
from vqfast.ops.define import define, register_autograd, register_batched
from vqfast.ops.nearest.op import nearest
from vqfast.ops.quantize import reference as quantize_reference
from vqfast.ops.quantize.reference import accumulator
from vqfast.ops.residual import reference


@define
def residual_quantize(
    z: Tensor, codebooks: Tensor, channel_dim: int, statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See the module."""
    run = registry.backend("residual", z, codebooks.shape[2]).residual_quantize
    return run(z, codebooks, channel_dim, statistics)


@torch.library.register_fake(residual_quantize)
def _(z, codebooks, channel_dim, statistics):
    dims = list(z.shape)
    dims.pop(channel_dim)
    stages, codes = len(codebooks), codebooks.shape[1] if statistics else 0
    losses = z.new_empty(stages, dtype=accumulator(z, codebooks))
    indices = z.new_empty((*dims, stages), dtype=torch.int64)
    counts = indices.new_empty(stages, codes)
    sums = losses.new_empty(stages, codes, codebooks.shape[2])
    return torch.empty_like(z), indices, losses, losses.clone(), counts, sums


@define
def residual_backward(
    grad_quantized: Tensor,
    grad_codebook_losses: Tensor,
    grad_commitment_losses: Tensor,
    z: Tensor,
    codebooks: Tensor,
    indices: Tensor,
    channel_dim: int,
) -> tuple[Tensor, Tensor]:
    """Gradients to ``z`` and to ``codebooks``."""
    run = registry.backend("residual", z, codebooks.shape[2]).residual_backward
    losses = grad_codebook_losses, grad_commitment_losses
    return run(grad_quantized, *losses, z, codebooks, indices, channel_dim)


@torch.library.register_fake(residual_backward)
def _(grad_quantized, grad_codebook_losses, grad_commitment_losses, z, codebooks, indices, channel_dim):
    return torch.empty_like(z), codebooks.new_empty(codebooks.shape)


def _setup_context(ctx, inputs, output):
    z, codebooks, ctx.channel_dim, _ = inputs
    _, indices, _, _, counts, sums = output
    ctx.mark_non_differentiable(indices, counts, sums)
    ctx.save_for_backward(z, codebooks, indices)


def _backward(ctx, grad_quantized, _indices, grad_codebook_losses, grad_commitment_losses, _counts, _sums):
    losses = grad_codebook_losses, grad_commitment_losses
    grads = residual_backward(grad_quantized, *losses, *ctx.saved_tensors, ctx.channel_dim)
    return *grads, None, None


_stage = partial(quantize_reference.quantize, search=nearest)
_definition = partial(reference.residual_quantize, stage=_stage)
register_autograd(residual_quantize, _backward, _setup_context, _definition)
differentiate_through(residual_backward, reference.residual_backward)


@define
def residual_codes(z: Tensor, codebooks: list[Tensor], channel_dim: int) -> Tensor:
    """The ``indices`` of ``residual_quantize``; each stage's codebook ``(K, D)``."""
    run = registry.backend("residual", z, codebooks[0].shape[1]).residual_codes
    return run(z, codebooks, channel_dim)


@torch.library.register_fake(residual_codes)
def _(z, codebooks, channel_dim):
    dims = list(z.shape)
    dims.pop(channel_dim)
    return z.new_empty((*dims, len(codebooks)), dtype=torch.int64)


@define
def projected_codes(
    z: Tensor, codebooks: list[Tensor], maps: list[Tensor], unit: bool, details: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``z (B, C, T)``, each stage's codebook ``(K, D)`` and ``maps``: weight ``(D, C)`` and bias ``(D,)``
    into its width, weight ``(C, D)`` and bias ``(C,)`` back -> ``indices`` int64 ``(B, T, Q)`` and, with
    ``details`` (else of no sample), ``latents (B, Q * D, T)``, what each stage was given, and ``quantized``,
    as ``z``, the sum of what came back. ``unit``: nearest by unit vectors. All tensors have one dtype.
    """
    run = registry.backend("residual", z, codebooks[0].shape[1]).projected_codes
    return run(z, codebooks, maps, unit, details)


@torch.library.register_fake(projected_codes)
def _(z, codebooks, maps, unit, details):
    batch, channels, length = z.shape
    stages, shown = len(codebooks), batch if details else 0
    indices = z.new_empty((batch, length, stages), dtype=torch.int64)
    latents = z.new_empty(shown, stages * codebooks[0].shape[1], length)
    return indices, latents, z.new_empty(shown, channels, length)


register_batched(residual_codes, partial(reference.residual_codes, search=nearest))
register_batched(projected_codes, partial(reference.projected_codes, search=nearest))
