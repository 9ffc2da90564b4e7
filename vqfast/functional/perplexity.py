"""How many codes are in use."""

from __future__ import annotations

import torch
from torch import Tensor

from vqfast.checks import check_indices, check_sizes


def perplexity(indices: Tensor, num_embeddings: int) -> Tensor:
    """Measures how many codes are in use: ``exp(-sum_k p_k log p_k)`` of the codes' frequencies ``p_k``.

    It is 1 when one code is used, and K when all are used alike.

    Args:
        indices: integers in ``0..num_embeddings - 1``, any shape; -1, as layers give it for masked vectors,
            isn't counted.
        num_embeddings: the number of codes K.

    Returns:
        A float32 scalar; NaN for no indices.

    Raises:
        TypeError: ``indices`` isn't an integer tensor, or ``num_embeddings`` isn't an integer.
        ValueError: an index is out of range.

    Example:
        >>> vqfast.functional.perplexity(torch.tensor([0, 1, 2, 3]), 8)
        tensor(4.)
        >>> vqfast.functional.perplexity(torch.tensor([5, 5, 5, 5]), 8)
        tensor(1.)
    """
    check_sizes(num_embeddings=num_embeddings)
    check_indices("indices", indices, num_embeddings, minimum=-1)
    flat = indices.long().flatten()
    bins = torch.where(flat < 0, num_embeddings, flat)  # the last bin is of masked vectors
    # not bincount, which vmap doesn't know
    counts = flat.new_zeros(num_embeddings + 1).index_add(0, bins, torch.ones_like(bins))[:num_embeddings]
    p = counts.double() / counts.sum()
    entropy: Tensor = torch.special.entr(p).sum()
    return entropy.exp().float()
