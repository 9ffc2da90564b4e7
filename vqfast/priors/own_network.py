"""Bring your own network: the door at which its arguments are checked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vqfast.checks import check_choice, check_integer, check_tensor
from vqfast.priors.calls import modules_of
from vqfast.priors.traced import TracedPrior


def program_of(
    call: Callable[..., Tensor],
    num_embeddings: int,
    shape: tuple[int, ...],
    *,
    num_quantizers: int | None = None,
    num_mixtures: int | None = None,
    num_classes: int | None = None,
    condition: Tensor | None = None,
    predicts: str = "own",
) -> TracedPrior:
    """Makes a prior of any causal network, which is then sampled fast.

    The network is traced, and its operations are turned into a sampling program. The program is compared with
    the network on random codes, for two batch sizes and, if the network takes it, another shape; and again
    at each new shape before it is used there. The network may change afterwards, its weights, modules and
    attributes: the next sample is drawn with the new ones. What its code reads elsewhere, as in files, isn't
    watched.

    Args:
        call: a module in evaluation mode, or a function that uses one. ``call(codes)`` returns logits or
            log-probabilities ``(B, num_embeddings, *shape)`` of int64 codes ``(B, *shape)``. Its further
            arguments are int64 labels ``(B,)`` if there are classes, and the condition if there is one.
        num_embeddings: K, the number of codes.
        shape: of a grid of codes, ``(H, W)`` or ``(T,)``.
        num_quantizers: S, how many codes each position has, as an image's colours or residual codes; ``None``
            for one. Codes are then ``(B, *shape, S)`` and logits ``(B, num_embeddings, *shape, S)``, and the
            logits of a code may depend on the position's codes before it.
        num_mixtures: M, if the network doesn't return logits, but ``(B, 3 M, *shape)``: log-weights, means
            and log-scales of M logistic distributions. Code ``c`` then stands for the value
            ``2 c / (num_embeddings - 1) - 1``, and a draw is rounded to the nearest one.
        num_classes: number of class labels; ``None`` if the network takes no labels.
        condition: an example ``(1, ...)`` of another argument of the network, of values for which it can be
            told from its program; ``None`` if it takes none.
        predicts: ``"own"`` if the logits at a position are for the code there. ``"next"`` if they are for the
            next code of a sequence; then samples need their first code as ``known``.

    Returns:
        A prior with all that ``PixelCNN`` can do. Its ``forward`` is the network's.

    Raises:
        TypeError: an argument has the wrong type, ``call`` uses no module with weights, or it doesn't return
            a tensor.
        ValueError: an argument is out of range; the network fails or returns another shape; it isn't causal;
            it has operations that no program has, all of which are listed with their lines; or the program
            isn't the network.

    >>> class Network(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.embedding = torch.nn.Embedding(8, 16)
    ...         self.above = torch.nn.Conv2d(16, 16, (2, 3))
    ...         self.head = torch.nn.Conv2d(16, 8, 1)
    ...
    ...     def forward(self, codes):
    ...         x = self.embedding(codes).permute(0, 3, 1, 2)
    ...         x = torch.nn.functional.pad(x, (1, 1, 2, 0))[:, :, :-1]  # the two rows above
    ...         return self.head(self.above(x).relu())
    >>> prior = vqfast.program_of(Network().eval(), num_embeddings=8, shape=(6, 6))
    >>> codes = prior.sample(4, (6, 6), temperature=0.9)
    >>> codes.shape
    torch.Size([4, 6, 6])
    >>> torch.equal(codes, prior.sample(4, (6, 6), temperature=0.9, method="reference"))
    True
    """
    check_integer("num_embeddings", num_embeddings)
    check_integer("num_quantizers", num_quantizers, optional=True)
    check_integer("num_mixtures", num_mixtures, optional=True)
    if num_mixtures is not None and num_embeddings == 1:
        raise ValueError("num_embeddings is 1; want 2 or more, which stand for values, with num_mixtures")
    if not callable(call) or not any(list(module.parameters()) for module in modules_of(call)):
        raise TypeError(f"call is {call!r}; want a module with weights, or a function that uses one")
    if not isinstance(shape, (tuple, list, torch.Size)):
        raise TypeError(f"shape is {shape!r}; want (H, W) or (T,)")
    shape = tuple(shape)
    for size in shape:
        check_integer(f"a size of shape {shape}", size)
    if len(shape) not in (1, 2):
        raise ValueError(f"shape is {shape}; want (H, W) or (T,)")
    check_choice("predicts", predicts, ("own", "next"))
    if predicts == "next" and len(shape) == 2:
        raise ValueError("predicts is 'next'; want 'own' for grids of two dimensions")
    if condition is not None and check_tensor("condition", condition).ndim == 0:
        raise ValueError("condition has shape (); want (1, ...), an example")
    return TracedPrior(
        call,
        num_embeddings,
        shape,
        num_quantizers=num_quantizers,
        num_mixtures=num_mixtures,
        num_classes=num_classes,
        condition=condition,
        predicts=predicts,
    )
