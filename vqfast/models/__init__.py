"""Models: an encoder and a decoder around a ``VQLayer``."""

from vqfast.models.vqvae import CONFIGS, VQVAE, VQVAEOutput

__all__ = ["CONFIGS", "VQVAE", "VQVAEOutput"]
