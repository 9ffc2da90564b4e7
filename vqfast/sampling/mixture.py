"""Codes that stand for values, drawn from mixtures of logistic distributions.

Code ``c`` of K stands for the value ``2 c / (K - 1) - 1`` in -1..1. Its probability is that of the values
that are nearest to it; the first and the last code have all that is beyond. Source: Salimans et al. 2017,
"PixelCNN++" (arXiv 1701.05517), section 2.1.

The parameters of a mixture of M are its M log-weights, M means and M log-scales, along one dimension.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vqfast.sampling.draw import Draw


def draw_value(draw: Draw, parameters: Tensor, first: Tensor, own: Tensor, num_embeddings: int) -> Tensor:
    """Draws a code for each sample: a component, a value of its distribution, and the nearest code.

    ``temperature`` divides the log-weights and multiplies the scale; ``top_k`` and ``top_p`` choose among the
    components.

    Args:
        draw: how to draw.
        parameters: floating ``(B, 3 M)``.
        first: Gumbel noise ``(B, M + 1)`` of the position's first code, whose M numbers choose the component:
            so the codes of a position have the same one.
        own: Gumbel noise ``(B, M + 1)`` of the code, whose last number chooses the value.
        num_embeddings: K.

    Returns:
        int64 ``(B,)``; -1 where no component can be drawn or the value is NaN.
    """
    weights, means, log_scales = parameters.double().chunk(3, dim=1)
    component = draw(weights, first[:, :-1])
    mean, log_scale = (each.gather(1, component.clamp(min=0)[:, None])[:, 0] for each in (means, log_scales))
    log_u = -(-own[:, -1]).exp()  # of the uniform number that the noise was made of
    logistic = log_u - (-log_u.expm1()).log()
    scale = draw.temperature * log_scale.exp() if draw.temperature else 0  # also where that is infinite
    value = mean + scale * logistic
    codes = (value.nan_to_num().clamp(-1, 1).add(1) * ((num_embeddings - 1) / 2) + 0.5).floor().long()
    return codes.where((component >= 0) & ~value.isnan(), -1)


def nats(parameters: Tensor, codes: Tensor, num_embeddings: int, several: bool) -> Tensor:
    """``-log p`` of the codes of each position.

    Args:
        parameters: floating ``(B, 3 M, *shape)``; if a position has several codes, they are the last axis,
            and the weights are those of its first code.
        codes: int64 ``(B, *shape)``; -1 for those that don't count.
        num_embeddings: K.
        several: whether a position has several codes.

    Returns:
        ``(B, *shape)``, without the axis of several codes.
    """
    weights, means, log_scales = parameters.chunk(3, dim=1)
    step = 2 / (num_embeddings - 1)
    values = codes.unsqueeze(1).to(parameters.dtype) * step - 1
    inverse = (-log_scales).exp()
    upper, lower = ((values + side * step / 2 - means) * inverse for side in (1, -1))
    inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + (-(-step * inverse).expm1()).log()
    logs = inside.where(codes.unsqueeze(1) > 0, F.logsigmoid(upper))
    logs = logs.where(codes.unsqueeze(1) < num_embeddings - 1, F.logsigmoid(-lower))
    logs = logs.where(codes.unsqueeze(1) >= 0, 0)
    if several:
        weights, logs = weights[..., 0], logs.sum(-1)
    return -(weights.log_softmax(1) + logs).logsumexp(1)
