"""``vqfast::quantize``: a quantiser of one stage or several, with its losses and, on request, statistics.

``z (B, D, *spatial)`` with its channels at ``channel_dim``. ``codebooks`` is ``(K, D)`` for one stage or
``(Q, K, D)`` for Q residual stages; the outputs have the dimension Q where ``codebooks`` has it:

- ``quantized``, the shape, dtype and layout of ``z``: the (sum of the) code vectors;
- ``indices``, int64 ``(B, *spatial[, Q])``;
- ``codebook_losses`` and ``commitment_losses``, ``([Q])``, of equal value; the gradients of the one go to the
  stage's codebook, those of the other to ``z``;
- ``counts``, int64 ``([Q,] K)``, and ``sums``, ``([Q,] K, D)``, of the vectors that each code was given;
without
  ``statistics`` of no code, ``([Q,] 0)`` and ``([Q,] 0, D)``.

Losses, sums and residuals are float32 or wider.

``vqfast::residual_codes`` finds the indices alone, with a list of codebooks; ``vqfast::projected_codes``
those of stages between linear maps. Neither has a gradient.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from vqfast.ops import registry
from vqfast.ops.autograd import differentiate_through
from vqfast.ops.define import define, register_autograd, register_batched
from vqfast.ops.nearest.op import nearest
from vqfast.ops.nearest.reference import accumulator
from vqfast.ops.residual import reference
from vqfast.ops.residual.probe import part_of


@define
def quantize(
    z: Tensor, codebooks: Tensor, channel_dim: int, statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See the module."""
    part = partial(part_of, "quantize", codebooks.ndim == 3, z, channel_dim)
    run = registry.backend("residual", z, codebooks.shape[-1], part=part).quantize
    return run(z, codebooks, channel_dim, statistics)


@torch.library.register_fake(quantize)
def _(z, codebooks, channel_dim, statistics):
    dims = list(z.shape)
    dims.pop(channel_dim)
    *stages, codes, channels = codebooks.shape
    codes = codes if statistics else 0
    losses = z.new_empty(stages, dtype=accumulator(z, codebooks))
    indices = z.new_empty((*dims, *stages), dtype=torch.int64)
    counts = indices.new_empty((*stages, codes))
    sums = losses.new_empty((*stages, codes, channels))
    return torch.empty_like(z), indices, losses, losses.clone(), counts, sums


@define
def quantize_backward(
    grad_quantized: Tensor,
    grad_codebook_losses: Tensor,
    grad_commitment_losses: Tensor,
    z: Tensor,
    codebooks: Tensor,
    indices: Tensor,
    channel_dim: int,
) -> tuple[Tensor, Tensor]:
    """Gradients to ``z`` and to ``codebooks``."""
    part = partial(part_of, "quantize_backward", codebooks.ndim == 3, z, channel_dim)
    run = registry.backend("residual", z, codebooks.shape[-1], part=part).quantize_backward
    losses = grad_codebook_losses, grad_commitment_losses
    return run(grad_quantized, *losses, z, codebooks, indices, channel_dim)


@torch.library.register_fake(quantize_backward)
def _(grad_quantized, grad_codebook_losses, grad_commitment_losses, z, codebooks, indices, channel_dim):
    return torch.empty_like(z), codebooks.new_empty(codebooks.shape)


def _setup_context(ctx, inputs, output):
    z, codebooks, ctx.channel_dim, _ = inputs
    _, indices, _, _, counts, sums = output
    ctx.mark_non_differentiable(indices, counts, sums)
    ctx.save_for_backward(z, codebooks, indices)


def _backward(ctx, grad_quantized, _indices, grad_codebook_losses, grad_commitment_losses, _counts, _sums):
    z, codebooks, indices = ctx.saved_tensors
    losses = grad_codebook_losses, grad_commitment_losses
    grads = quantize_backward(grad_quantized, *losses, z, codebooks, indices, ctx.channel_dim)
    return *grads, None, None


_stage = partial(reference.quantize_stage, search=nearest)
register_autograd(quantize, _backward, _setup_context, partial(reference.quantize, stage=_stage))
differentiate_through(quantize_backward, reference.quantize_backward)


@define
def residual_codes(z: Tensor, codebooks: list[Tensor], channel_dim: int) -> Tensor:
    """The ``indices`` of ``quantize``; each stage's codebook ``(K, D)``."""
    part = partial(part_of, "residual_codes", True, z, channel_dim)
    run = registry.backend("residual", z, codebooks[0].shape[1], part=part).residual_codes
    return run(z, codebooks, channel_dim)


@torch.library.register_fake(residual_codes)
def _(z, codebooks, channel_dim):
    dims = list(z.shape)
    dims.pop(channel_dim)
    return z.new_empty((*dims, len(codebooks)), dtype=torch.int64)


@define
def projected_codes(
    z: Tensor, codebooks: list[Tensor], maps: list[Tensor], unit: bool, parts: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of residual stages that each search in a narrower space.

    Args:
        z: ``(B, C, T)``.
        codebooks: each stage's, ``(K, D)``.
        maps: four tensors for each stage: weight ``(D, C)`` and bias ``(D,)`` to its width, weight ``(C, D)``
            and bias ``(C,)`` back. All tensors have one dtype.
        unit: whether vectors and code vectors are divided by their lengths for the search.
        parts: whether to return the latents and the sum; without, they have no sample.

    Returns:
        ``indices`` int64 ``(B, T, Q)``; ``latents (B, Q * D, T)``, the mapped residual of each stage; and
        ``quantized``, the shape of ``z``, the sum of the code vectors mapped back.
    """
    part = partial(part_of, "projected_codes", True, z, 1)
    run = registry.backend("residual", z, codebooks[0].shape[1], part=part).projected_codes
    return run(z, codebooks, maps, unit, parts)


@torch.library.register_fake(projected_codes)
def _(z, codebooks, maps, unit, parts):
    batch, channels, length = z.shape
    stages, shown = len(codebooks), batch if parts else 0
    indices = z.new_empty((batch, length, stages), dtype=torch.int64)
    latents = z.new_empty(shown, stages * codebooks[0].shape[1], length)
    return indices, latents, z.new_empty(shown, channels, length)


register_batched(residual_codes, partial(reference.residual_codes, search=nearest))
register_batched(projected_codes, partial(reference.projected_codes, search=nearest))
