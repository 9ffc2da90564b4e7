"""Models: an encoder and a decoder around quantisers."""

from vqfast.models.autoencoder import Autoencoder
from vqfast.models.hierarchy import HierarchicalOutput, HierarchicalVQVAE
from vqfast.models.likelihood import logistic_mixture_mean, logistic_mixture_nats, mixture_channels
from vqfast.models.quantizers import LayerOptions
from vqfast.models.vqvae import CONFIGS, VQVAE, VQVAEOutput

__all__ = [
    "CONFIGS",
    "VQVAE",
    "Autoencoder",
    "HierarchicalOutput",
    "HierarchicalVQVAE",
    "LayerOptions",
    "VQVAEOutput",
    "logistic_mixture_mean",
    "logistic_mixture_nats",
    "mixture_channels",
]
