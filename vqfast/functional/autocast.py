"""The dtype that autocast computes in."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Autocast's dtype on the device of ``x``, ``None`` where autocast is off.

    It avoids ``torch.amp.is_autocast_available``, which torch 2.11 and older can't compile into a graph.
    """
    device = x.device.type
    return torch.get_autocast_dtype(device) if not x.is_meta and torch.is_autocast_enabled(device) else None
