"""Models: an encoder and a decoder around quantisers."""

from vqfast.models.autoencoder import Autoencoder
from vqfast.models.classifier import Classifier
from vqfast.models.configs import CONFIGS
from vqfast.models.hierarchy import HierarchicalOutput, HierarchicalVQVAE
from vqfast.models.level_prior import LevelPrior
from vqfast.models.likelihood import logistic_mixture_mean, logistic_mixture_nats, mixture_channels
from vqfast.models.mu_law import mu_law_decode, mu_law_encode
from vqfast.models.quantizers import LayerOptions
from vqfast.models.second_stage import SecondStage
from vqfast.models.speech import SpeechVQVAE
from vqfast.models.speech_drawing import DrawOptions
from vqfast.models.vqvae import VQVAE, VQVAEOutput

__all__ = [
    "CONFIGS",
    "VQVAE",
    "Autoencoder",
    "Classifier",
    "DrawOptions",
    "HierarchicalOutput",
    "HierarchicalVQVAE",
    "LayerOptions",
    "LevelPrior",
    "SecondStage",
    "SpeechVQVAE",
    "VQVAEOutput",
    "logistic_mixture_mean",
    "logistic_mixture_nats",
    "mixture_channels",
    "mu_law_decode",
    "mu_law_encode",
]
