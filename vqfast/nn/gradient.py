"""How the gradient of a quantised vector is passed to the vector."""

from __future__ import annotations

import torch
from torch import Tensor

from vqfast import functional

GRADIENTS = ("straight-through", "rotation")


def pass_gradient(z: Tensor, z_q: Tensor, gradient: str, dim: int) -> Tensor:
    """The values of ``z_q``, unchanged to the bit, with a gradient to ``z`` in place of their own.

    ``"straight-through"`` copies the gradient (van den Oord et al. 2017, section 3.2). ``"rotation"`` turns
    and scales it as ``z`` is turned and scaled to ``z_q`` (Fifty et al. 2024, arXiv 2410.06424, section 4.2):
    ``z_q = l R z`` with ``l = |z_q| / |z|`` and ``R = I - 2 r r^T + 2 q e^T``, where ``e``, ``q`` and ``r``
    are the unit vectors of ``z``, ``z_q`` and ``e + q``; ``l`` and ``R`` count as constants. A zero vector
    has no direction, so it gets the straight-through gradient.

    Args:
        z, z_q: floating point, of one shape, with channels at ``dim``.
    """
    source, target = z.detach(), z_q.detach()
    step = z - source  # zero, with the gradient of z
    if gradient == "rotation":
        length = torch.linalg.vector_norm(source, dim=dim, keepdim=True)
        e, q = functional.unit(source, channel_dim=dim), functional.unit(target, channel_dim=dim)
        r = functional.unit(e + q, channel_dim=dim)
        turned = step - 2 * r * (r * step).sum(dim, keepdim=True) + 2 * q * (e * step).sum(dim, keepdim=True)
        scale = torch.linalg.vector_norm(target, dim=dim, keepdim=True) / torch.where(length > 0, length, 1)
        step = torch.where(length > 0, scale * turned, step)
    return target + step
