"""Autoregressive priors of codes, and their samplers."""

from vqfast.prior.pixelcnn import PixelCNN, ResidualPixelCNN
from vqfast.prior.trace import program_of
from vqfast.prior.wavenet import WaveNet

__all__ = ["PixelCNN", "ResidualPixelCNN", "WaveNet", "program_of"]
