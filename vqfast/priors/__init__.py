"""Autoregressive priors of codes: models of our own, and any causal network as one."""

from vqfast.priors.base import CausalPrior
from vqfast.priors.clips import ClipPrior
from vqfast.priors.conditioned import ConditionedPrior
from vqfast.priors.frozen import ProgramPrior
from vqfast.priors.own_network import program_of
from vqfast.priors.pixelcnn import PixelCNN
from vqfast.priors.residual_pixelcnn import ResidualPixelCNN
from vqfast.priors.snail import PixelSNAIL
from vqfast.priors.wavenet import WaveNet

__all__ = [
    "CausalPrior",
    "ClipPrior",
    "ConditionedPrior",
    "PixelCNN",
    "PixelSNAIL",
    "ProgramPrior",
    "ResidualPixelCNN",
    "WaveNet",
    "program_of",
]
