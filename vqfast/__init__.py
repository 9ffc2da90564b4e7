"""vqfast: exact vector quantisation and PixelCNN priors at the machine's limit."""

from typing import TYPE_CHECKING, Any

from vqfast import functional
from vqfast.acceleration import Report, accelerate
from vqfast.convert import convert_state_dict
from vqfast.functional import Quantized
from vqfast.models import VQVAE, HierarchicalOutput, HierarchicalVQVAE, VQVAEOutput
from vqfast.nn import LossParts, MaskedConv1d, MaskedConv2d, ResidualVQLayer, VQLayer, VQOutput
from vqfast.priors import PixelCNN, PixelSNAIL, ResidualPixelCNN, WaveNet, program_of

if TYPE_CHECKING:
    from vqfast.pipeline.checkpoint import load_model

__version__ = "0.2.0"
__all__ = [
    "VQVAE",
    "HierarchicalOutput",
    "HierarchicalVQVAE",
    "LossParts",
    "MaskedConv1d",
    "MaskedConv2d",
    "PixelCNN",
    "PixelSNAIL",
    "Quantized",
    "Report",
    "ResidualPixelCNN",
    "ResidualVQLayer",
    "VQLayer",
    "VQOutput",
    "VQVAEOutput",
    "WaveNet",
    "accelerate",
    "convert_state_dict",
    "functional",
    "load_model",
    "program_of",
]

if not TYPE_CHECKING:  # where it would make every name an Any

    def __getattr__(name: str) -> Any:
        if name != "load_model":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from vqfast.pipeline.checkpoint import load_model  # when asked for: layers need no pipeline

        return load_model
