"""What the quantisers return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class VQOutput(NamedTuple):
    """What ``VQLayer`` and ``ResidualVQLayer`` return.

    Attributes:
        quantized: the shape and dtype of ``z_e``, with the gradient that the option ``gradient`` names. The
            memory layout is that of ``z_e`` too, unless heads or projections rearrange it.
        indices: int64, the shape of ``z_e`` without its channels; heads or stages stand last. -1 where
            masked.
        loss: a scalar to add to the reconstruction loss.

    Example:
        >>> out = vqfast.VQLayer(512, 64)(torch.randn(2, 64, 8, 8))
        >>> out.quantized.shape, out.indices.shape, out.loss.shape
        (torch.Size([2, 64, 8, 8]), torch.Size([2, 8, 8]), torch.Size([]))
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor


class LossParts(NamedTuple):
    """The parts of a quantiser's loss before weighting: scalars, or one value for each stage ``(Q,)``.

    Attributes:
        codebook: the mean of ``(sg[z_e] - z_q)^2``, which pulls code vectors to their vectors.
        commitment: the mean of ``(z_e - sg[z_q])^2``, which pulls vectors to their code vectors.

    Example:
        >>> vq = vqfast.VQLayer(512, 64, beta=0.25)
        >>> out, parts = vq(torch.randn(2, 64, 8, 8), return_parts=True)
        >>> bool(out.loss == parts.codebook + 0.25 * parts.commitment)
        True
    """

    codebook: Tensor
    commitment: Tensor
