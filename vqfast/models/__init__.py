"""Models: encoders and decoders around a ``VQLayer``."""

from vqfast.models.vqvae import CONFIGS, VQVAE, VQVAEOutput

__all__ = ["CONFIGS", "VQVAE", "VQVAEOutput"]
