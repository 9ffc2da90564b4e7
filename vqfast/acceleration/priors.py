"""Finds priors in a model: networks that draw codes one after another, which ``program_of`` samples fast.

A network is one if its class is named like a PixelCNN or a PixelSNAIL and has convolutions, or if it has
convolutions with masks that hide the taps after the centre in raster order, some with the centre and some
without. No code of it is run.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from vqfast.priors.base import CausalPrior

_NAME = re.compile(r"pixel_?(cnn|snail)$", re.IGNORECASE)


def find_priors(module: nn.Module, path: str = "") -> list[str]:
    """The paths of the smallest priors in a module at ``path``. Those of vqfast aren't among them."""
    if isinstance(module, CausalPrior):
        return []
    named = _NAME.search(type(module).__name__)
    if named and any(isinstance(part, (nn.Conv1d, nn.Conv2d)) for part in module.modules()):
        return [path]
    children = module.named_children()
    inside = [found for name, child in children for found in find_priors(child, f"{path}.{name}".lstrip("."))]
    if inside or any(isinstance(part, CausalPrior) for part in module.modules()):
        return inside
    kinds = {raster_mask(part) for part in module.modules()}
    return [path] if {"A", "B"} <= kinds else []


def raster_mask(module: nn.Module) -> str | None:
    """The type of a convolution's ``mask`` that keeps taps before the centre and none after it.

    ``"A"`` if it hides the centre, ``"B"`` if it keeps it; ``None`` if there is no such mask.
    """
    mask = getattr(module, "mask", None)
    if not isinstance(module, nn.Conv2d) or not isinstance(mask, Tensor) or mask.is_meta:
        return None
    if mask.shape[-2:] != module.weight.shape[-2:]:
        return None
    kept = (mask != 0).reshape(-1, mask.shape[-2:].numel()).any(0).tolist()
    centre = len(kept) // 2
    if not any(kept[:centre]) or any(kept[centre + 1 :]):
        return None
    return "B" if kept[centre] else "A"
