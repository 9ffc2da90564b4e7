"""vqfast: exact vector quantisation and PixelCNN priors at the machine's limit."""

from typing import TYPE_CHECKING, Any

from vqfast import functional
from vqfast.acceleration import accelerate
from vqfast.models import VQVAE
from vqfast.nn import MaskedConv1d, MaskedConv2d, ResidualVQLayer, VQLayer, VQOutput
from vqfast.prior import PixelCNN, ResidualPixelCNN, WaveNet, program_of

if TYPE_CHECKING:
    from vqfast.pipeline.checkpoint import load_model

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
    "load_model",
    "program_of",
]


def __getattr__(name: str) -> Any:
    if name != "load_model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vqfast.pipeline.checkpoint import load_model  # when asked for: layers need no pipeline

    return load_model
