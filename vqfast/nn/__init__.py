"""Modules: state, and what to do with it in training."""

from vqfast.nn.masked_conv import MaskedConv1d, MaskedConv2d
from vqfast.nn.vq import VQLayer, VQOutput

__all__ = ["MaskedConv1d", "MaskedConv2d", "VQLayer", "VQOutput"]
