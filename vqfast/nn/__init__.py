"""Modules: state, and how it learns in training."""

from vqfast.nn.masked_conv import MaskedConv1d, MaskedConv2d
from vqfast.nn.outputs import LossParts, VQOutput
from vqfast.nn.residual_vq import ResidualVQLayer
from vqfast.nn.vq import VQLayer

__all__ = ["LossParts", "MaskedConv1d", "MaskedConv2d", "ResidualVQLayer", "VQLayer", "VQOutput"]
