"""Residual quantisation on a GPU: ``quantize/triton.py`` stage by stage.

Each stage reads and writes the residual once, 8 bytes a number, beside the search. One pass for all stages is
left for when a GPU can measure it.
"""

from __future__ import annotations

from functools import partial

from vqfast.ops.nearest.triton import nearest
from vqfast.ops.quantize.triton import quantize, quantize_backward
from vqfast.ops.residual import reference

residual_quantize = partial(reference.residual_quantize, stage=quantize)
residual_backward = partial(reference.residual_backward, stage=quantize_backward)
residual_codes = partial(reference.residual_codes, search=nearest)
projected_codes = partial(reference.projected_codes, search=nearest)
