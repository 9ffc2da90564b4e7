"""A prior of one level of codes, given the codes of the coarser levels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqfast.checks import Device, check_indices, check_integer
from vqfast.nn.calls import typed_as
from vqfast.nn.residual_block import ResidualBlock, convolutions
from vqfast.priors.base import CausalPrior
from vqfast.priors.layers import placement
from vqfast.saving import Pretrained
from vqfast.saving.models import loadable


class ConditioningNetwork(nn.Module):
    """From the codes of coarser levels to a map over the grid of a finer one.

    From the coarsest level on, the vectors that stand for a level's codes are added to what came before.
    Residual blocks follow, and a transposed convolution to the grid of the next level; the last one is the
    finer level's.

    Source: Razavi et al. 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2", arXiv 1906.00446,
    section 3.2: residual blocks condition the bottom's prior on the top.

    Args:
        codebook_sizes: K of each coarser level, from the coarsest.
        strides: for each of them, how many positions of the finer grid along an axis one of its codes stands
            for; each a multiple of the next.
        channels: of the map, and inside of the network.
        num_residual_blocks: at each level.
        ndim: the number of axes of a grid, 1 to 3.
        device, dtype: of the parameters, as in ``torch.nn``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        strides: Sequence[int],
        channels: int,
        *,
        num_residual_blocks: int = 2,
        ndim: int = 2,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, sizes in (("codebook_sizes", codebook_sizes), ("strides", strides)):
            if not isinstance(sizes, Sequence) or isinstance(sizes, str):
                raise TypeError(f"{name} is {sizes!r}; want a list of integers")
            for size in sizes:
                check_integer(f"a number of {name}", size)
        if not strides or len(strides) != len(codebook_sizes):
            raise ValueError(f"strides is {list(strides)}; want one for each level, {len(codebook_sizes)}")
        if any(coarse % fine for coarse, fine in pairwise(strides)):
            raise ValueError(f"strides is {list(strides)}; want each a multiple of the next")
        check_integer("channels", channels)
        check_integer("num_residual_blocks", num_residual_blocks, 0)
        check_integer("ndim", ndim, 1, 3)
        factory = placement(device, dtype)
        conv, transposed = convolutions(ndim)
        self.embeddings = nn.ModuleList(nn.Embedding(k, channels, **factory) for k in codebook_sizes)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(ResidualBlock(conv, channels, channels, **factory) for _ in range(num_residual_blocks))
            )
            for _ in codebook_sizes
        )
        self.ups = nn.ModuleList(
            transposed(channels, channels, coarse // fine, coarse // fine, **factory)
            for coarse, fine in pairwise((*strides, 1))
        )

    def forward(self, coarser: Sequence[Tensor]) -> Tensor:
        """The map.

        Args:
            coarser: int64 ``(B, *shape)`` for each coarser level, from the coarsest, in ``0..K - 1``.

        Returns:
            ``(B, channels, *shape)``, of the finer level's shape.
        """
        x: Any = 0
        for indices, embedding, blocks, up in zip(
            coarser, self.embeddings, self.blocks, self.ups, strict=True
        ):
            x = up(blocks(x + embedding(indices).movedim(-1, 1)))
        condition: Tensor = x
        return condition


@loadable
class ConditionedPrior(nn.Module, Pretrained):
    """A prior of one level's codes, given the codes of the coarser levels.

    A conditioning network turns the coarser codes into the map that the prior takes, and is trained with it.
    Sampling computes the map once for a batch, and then runs the prior's program.

    Args:
        prior: any prior with ``condition_channels``.
        codebook_sizes, strides, num_residual_blocks: see ``ConditioningNetwork``.
        device, dtype: of the network, as in ``torch.nn``.

    Attributes:
        num_embeddings, num_classes, ndim: the prior's.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range; the prior takes no map.

    >>> from vqfast.priors import ConditionedPrior, PixelCNN
    >>> prior = ConditionedPrior(PixelCNN(16, channels=8, num_layers=2, condition_channels=8), [32], [2])
    >>> top = torch.zeros(4, 3, 5, dtype=torch.int64)
    >>> bottom = prior.sample(4, (6, 10), coarser=[top])
    >>> bottom.shape, prior(bottom, coarser=[top]).shape
    (torch.Size([4, 6, 10]), torch.Size([4, 16, 6, 10]))
    """

    def __init__(
        self,
        prior: CausalPrior,
        codebook_sizes: Sequence[int],
        strides: Sequence[int],
        *,
        num_residual_blocks: int = 2,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(prior, CausalPrior):
            raise TypeError(f"prior is {prior!r}; want a prior of vqfast")
        if not prior.condition_channels:
            raise ValueError("prior has condition_channels 0; want 1 or more")
        step: int = getattr(
            prior, "condition_stride", 1
        )  # positions that an entry of the prior's map stands for
        if any(stride % step for stride in strides):
            raise ValueError(
                f"strides is {list(strides)}; want multiples of {step}, the prior's condition_stride"
            )
        self.prior = prior
        self.network = ConditioningNetwork(
            codebook_sizes,
            [stride // step for stride in strides],
            prior.condition_channels,
            num_residual_blocks=num_residual_blocks,
            ndim=prior.ndim,
            device=device,
            dtype=dtype,
        )
        self.num_embeddings, self.num_classes, self.ndim = prior.num_embeddings, prior.num_classes, prior.ndim
        self.codebook_sizes, self.strides = tuple(codebook_sizes), tuple(strides)
        self.num_residual_blocks = num_residual_blocks

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments but for ``device`` and ``dtype``; among them the prior itself."""
        return {
            "prior": self.prior,
            "codebook_sizes": list(self.codebook_sizes),
            "strides": list(self.strides),
            "num_residual_blocks": self.num_residual_blocks,
        }

    @property
    def level(self) -> int:
        """The number of coarser levels."""
        return len(self.strides)

    def forward(
        self, indices: Tensor, labels: Tensor | int | None = None, *, coarser: Sequence[Tensor]
    ) -> Tensor:
        """Logits of every code, given the earlier codes and all codes of the coarser levels.

        Args:
            indices, labels: see ``CausalPrior.forward``.
            coarser: integer ``(B, *shape)`` for each coarser level, from the coarsest, in ``0..K - 1``.

        Returns:
            ``(B, K, *shape)``.

        Raises:
            TypeError, ValueError: see ``CausalPrior.forward``; ``coarser`` isn't as above.
        """
        condition = self._condition_of(indices, coarser)
        return self.prior(indices, labels, condition)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self, *args: Any, **options: Any) -> Any: ...

    def bits_per_code(
        self, indices: Tensor, labels: Tensor | int | None = None, *, coarser: Sequence[Tensor]
    ) -> Tensor:
        """How many bits each code takes, as ``CausalPrior.bits_per_code``: ``(B,)``.

        Args:
            indices, labels, coarser: see ``forward``.
        """
        return self.prior.bits_per_code(indices, labels, self._condition_of(indices, coarser))

    def _condition_of(self, indices: Tensor, coarser: Sequence[Tensor]) -> Tensor:
        self._check(coarser, tuple(indices.shape[1 : 1 + self.prior.ndim]), len(indices))
        return self.condition(coarser, tuple(indices.shape[1 : 1 + self.prior.ndim]))

    def sample(
        self, num: int, shape: tuple[int, ...], *, coarser: Sequence[Tensor], **options: Any
    ) -> Tensor:
        """Draws grids of codes.

        Args:
            num, shape: see ``CausalPrior.sample``.
            coarser: integer ``(num, *shape)`` for each coarser level, from the coarsest.
            options: those of ``CausalPrior.sample`` but ``condition``.

        Returns:
            int64 ``(num, *shape)``.

        Raises:
            TypeError, ValueError: see ``forward`` and ``CausalPrior.sample``.
        """
        self._check(coarser, shape, num)

        @torch.no_grad()
        def condition(samples: range) -> Tensor:
            device = next(self.parameters()).device
            parts = [codes[samples.start : samples.stop].to(device) for codes in coarser]
            return self.condition(parts, shape)

        return torch.cat(list(self.prior.sample_batches(num, shape, condition=condition, **options)))

    def condition(self, coarser: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """The map ``(B, C, *shape)`` that the prior takes."""
        self._check(coarser, shape)
        condition: Tensor = self.network([codes.long() for codes in coarser])
        return condition

    def _check(self, coarser: Sequence[Tensor], shape: Sequence[int], num: int | None = None) -> None:
        if isinstance(coarser, Tensor) or not isinstance(coarser, Sequence):
            raise TypeError(f"coarser is a {type(coarser).__name__}; want a list, one tensor for each level")
        if len(coarser) != self.level:
            raise ValueError(f"coarser has {len(coarser)} levels; want {self.level}")
        for level, (codes, stride) in enumerate(zip(coarser, self.strides, strict=True)):
            check_indices(f"coarser[{level}]", codes, self.codebook_sizes[level])
            if num is not None and len(codes) != num:
                raise ValueError(f"coarser[{level}] has {len(codes)} grids; want {num}, one for each sample")
            found = tuple(length * stride for length in codes.shape[1:])
            if found != tuple(shape):
                raise ValueError(
                    f"coarser[{level}] has shape {tuple(codes.shape)}, of stride {stride}; "
                    f"want grids that cover {tuple(shape)}"
                )
