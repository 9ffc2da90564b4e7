"""Modules: state, and what to do with it in training."""

from vqfast.nn.masked_conv import MaskedConv1d, MaskedConv2d
from vqfast.nn.residual_vq import ResidualVQLayer
from vqfast.nn.vq import LossParts, VQLayer, VQOutput

__all__ = ["LossParts", "MaskedConv1d", "MaskedConv2d", "ResidualVQLayer", "VQLayer", "VQOutput"]
