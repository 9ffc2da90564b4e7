"""The ops as functions: each checks its arguments, then runs the op."""

from vqfast.functional.codes import projected_codes, residual_codes
from vqfast.functional.masked_conv import gate, kernel_shape, masked_conv1d, masked_conv2d, visible_taps
from vqfast.functional.nearest import nearest_code, nearest_unit_code, unit
from vqfast.functional.perplexity import perplexity
from vqfast.functional.quantize import Quantized, quantize, residual_quantize
from vqfast.functional.ssim import ssim

__all__ = [
    "Quantized",
    "gate",
    "kernel_shape",
    "masked_conv1d",
    "masked_conv2d",
    "nearest_code",
    "nearest_unit_code",
    "perplexity",
    "projected_codes",
    "quantize",
    "residual_codes",
    "residual_quantize",
    "ssim",
    "unit",
    "visible_taps",
]
