"""vqfast: exact vector quantisation and PixelCNN priors at the machine's limit."""

from vqfast import functional
from vqfast.acceleration import accelerate
from vqfast.models import VQVAE
from vqfast.nn import MaskedConv1d, MaskedConv2d, ResidualVQLayer, VQLayer, VQOutput
from vqfast.prior import PixelCNN, ResidualPixelCNN, WaveNet

__version__ = "0.1.0"
__all__ = [
    "VQVAE",
    "MaskedConv1d",
    "MaskedConv2d",
    "PixelCNN",
    "ResidualPixelCNN",
    "ResidualVQLayer",
    "VQLayer",
    "VQOutput",
    "WaveNet",
    "accelerate",
    "functional",
]
