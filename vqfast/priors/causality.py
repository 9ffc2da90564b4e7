"""Finds out by trial which codes the outputs of a network depend on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_PROBES = 16  # positions whose code is changed, spread over the grid


@torch.no_grad()
def later_code_seen(
    call: Callable[..., Tensor],
    codes: Tensor,
    others: list[Tensor],
    num_embeddings: int,
    lead: int,
    ndim: int,
) -> str | None:
    """Says which output depends on a code that it must not see; ``None`` if none was found.

    Args:
        call: the network, ``call(codes, *others)`` -> logits ``(B, K, *shape)``.
        codes: int64 ``(B, *shape)``; the codes of the first sample are changed.
        others: the network's other inputs.
        num_embeddings: K, the number of codes.
        lead: by how many codes logits precede the code that they are for.
        ndim: axes of the grid. A shape with one more has several codes at each position.
    """
    shape, size = codes.shape[1:], codes[0].numel()
    before = call(codes, *others).flatten(2)
    found, by_column = None, len(shape) == ndim == 2
    for changed in sorted({size - 1 - i * (size - 1) // max(1, _PROBES - 1) for i in range(_PROBES)}):
        other = codes.clone()
        other.view(-1)[changed] = (other.view(-1)[changed] + 1) % num_embeddings
        differs = (call(other, *others).flatten(2) != before).any(1)[0]
        seen = differs[: changed + 1 - lead].nonzero()
        if found is None and len(seen):
            found = (
                f"its output at {_position(int(seen[0]), shape)} sees the code at {_position(changed, shape)}"
            )
        if by_column:
            order = torch.arange(size, device=codes.device).view(shape[::-1]).mT.flatten()  # column by column
            by_column = bool((order[differs] > order[changed]).all())
    if found and by_column:
        found += (
            "; it generates column by column, and the order here is row by row: give it transposed grids, as "
            "lambda codes: network(codes.mT).mT"
        )
    return found


def _position(index: int, shape: torch.Size) -> tuple[int, ...]:
    """The position of a raster index."""
    return tuple(int(n) for n in torch.unravel_index(torch.tensor(index), shape))
