"""Autoregressive priors of codes, and their samplers."""

from vqfast.priors.pixelcnn import PixelCNN, ResidualPixelCNN
from vqfast.priors.traced import program_of
from vqfast.priors.wavenet import WaveNet

__all__ = ["PixelCNN", "ResidualPixelCNN", "WaveNet", "program_of"]
