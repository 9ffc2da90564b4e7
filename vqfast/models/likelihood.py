"""The discretised logistic mixture: how likely values are under what a decoder says of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.checks import check_floating, check_integer, check_sizes

LOG_SCALES = (-7.0, 7.0)  # from a thousandth of a step of 1/255 to nearly uniform


def mixture_channels(channels: int, num_mixtures: int) -> int:
    """How many channels ``logistic_mixture_nats`` takes for data of ``channels`` channels.

    Example:
        >>> vqfast.models.mixture_channels(3, 10)
        100
    """
    check_sizes(channels=channels, num_mixtures=num_mixtures)
    return num_mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)


class _Mixture(NamedTuple):
    """M components.

    Attributes:
        log_weights: ``(B, M, *spatial)``.
        means, log_scales: ``(B, M, C, *spatial)``, for values in -1 to 1.
        coefficients: ``(B, M, C * (C - 1) / 2, *spatial)``: how each channel's mean depends on the values of
            the channels before it, channel by channel.
    """

    log_weights: Tensor
    means: Tensor
    log_scales: Tensor
    coefficients: Tensor

    def mean_of(self, channel: int, values: Tensor) -> Tensor:
        """A channel's mean ``(B, M, *spatial)``, given the values before it ``(B, 1 or M, C, *spatial)``."""
        first = channel * (channel - 1) // 2
        ours = self.coefficients[:, :, first : first + channel]
        return self.means[:, :, channel] + (ours * values[:, :, :channel]).sum(2)


def _mixture(parameters: Tensor, channels: int) -> _Mixture:
    check_floating(parameters=parameters)
    size = mixture_channels(channels, 1)
    if parameters.ndim < 2 or parameters.shape[1] % size or parameters.shape[1] == 0:
        raise ValueError(
            f"parameters has shape {tuple(parameters.shape)}; want (B, M * {size}, *spatial) "
            f"for data of {channels} channels"
        )
    parts = parameters.unflatten(1, (-1, size)).to(torch.promote_types(parameters.dtype, torch.float32))
    logits, means, log_scales, coefficients = parts.split(
        [1, channels, channels, size - 1 - 2 * channels], dim=2
    )
    log_scales = log_scales.clamp(*LOG_SCALES)
    return _Mixture(F.log_softmax(logits.squeeze(2), 1), means, log_scales, coefficients.tanh())


def logistic_mixture_nats(parameters: Tensor, x: Tensor, *, num_values: int = 256) -> Tensor:
    """``-log p(x)`` under mixtures of discretised logistic distributions, one for each position.

    Source: Salimans et al. 2017, "PixelCNN++" (arXiv 1701.05517), sections 2.1 and 2.2, for any number of
    channels. A value has the probability of the interval around it that is as long as the step between two
    values; the first and the last have all that is beyond. Each channel's mean depends linearly on the
    channels before it. Probabilities are computed in float32 or wider, without a lower bound on them.

    Args:
        parameters: floating point ``(B, mixture_channels(C, M), *spatial)``: for each of M components a
            logit, C means, C log scales, and ``C * (C - 1) / 2`` coefficients before their tanh. Means and
            scales are those of values mapped to -1 to 1.
        x: floating point ``(B, C, *spatial)``, multiples of ``1 / (num_values - 1)`` in 0 to 1.
        num_values: how many values there are.

    Returns:
        ``(B,)``, nats for each item, sums over channels and positions. Bits for each value of the input are
        ``nats / (x[0].numel() * math.log(2))``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the shapes don't fit, ``num_values`` is below 2, or the devices differ.

    Example:
        >>> x = torch.tensor([0.0, 51.0, 255.0]).view(1, 1, 3) / 255
        >>> logistic = torch.zeros(1, vqfast.models.mixture_channels(1, 1), 3)  # mean 0, scale 1
        >>> vqfast.models.logistic_mixture_nats(logistic, x)
        tensor([8.9439])
    """
    check_integer("num_values", num_values, 2)
    check_floating(parameters=parameters, x=x)
    if x.ndim < 2 or x.shape[1] == 0 or x.shape != (len(parameters), x.shape[1], *parameters.shape[2:]):
        wanted = f"(B, C, *spatial) with the B and spatial of parameters, {tuple(parameters.shape)}"
        raise ValueError(f"x has shape {tuple(x.shape)}; want {wanted}")
    mixture = _mixture(parameters, x.shape[1])
    values = 2 * x.to(mixture.means.dtype).unsqueeze(1) - 1  # (B, 1, C, *spatial)
    means = torch.stack([mixture.mean_of(channel, values) for channel in range(x.shape[1])], 2)
    half = 1 / (num_values - 1)  # of a step, which is 2 / (num_values - 1) in -1 to 1
    inverse = (-mixture.log_scales).exp()
    upper, lower = (values - means + half) * inverse, (values - means - half) * inverse
    # sigmoid(a) - sigmoid(b) = sigmoid(a) * sigmoid(-b) * (1 - exp(b - a)), without a difference
    below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
    inside = below + above + (-torch.expm1(-2 * half * inverse)).log()
    log_p = torch.where(values < half - 1, below, torch.where(values > 1 - half, above, inside))
    return -torch.logsumexp(mixture.log_weights + log_p.sum(2), 1).flatten(1).sum(1)


def logistic_mixture_mean(parameters: Tensor, channels: int) -> Tensor:
    """The mean of the mixture before it is discretised, in 0 to 1: what a decoder's picture is.

    Args:
        parameters: as in ``logistic_mixture_nats``.
        channels: C.

    Returns:
        ``(B, C, *spatial)``, of the dtype of ``parameters``.

    Raises:
        TypeError, ValueError: as in ``logistic_mixture_nats``.

    Example:
        >>> vqfast.models.logistic_mixture_mean(torch.zeros(1, vqfast.models.mixture_channels(1, 1), 3), 1)
        tensor([[[0.5000, 0.5000, 0.5000]]])
    """
    check_sizes(channels=channels)
    mixture = _mixture(parameters, channels)
    values = mixture.means[:, :, :1]
    for channel in range(1, channels):
        values = torch.cat([values, mixture.mean_of(channel, values).unsqueeze(2)], 2)
    mean = (mixture.log_weights.exp().unsqueeze(2) * values).sum(1)
    return ((mean + 1) / 2).clamp(0, 1).to(parameters.dtype)
