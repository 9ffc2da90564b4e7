"""A second VQ-VAE over the codes of a first one: codes of codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.models.autoencoder import Autoencoder
from vqfast.models.hierarchy import HierarchicalOutput
from vqfast.models.vqvae import VQVAE
from vqfast.nn import VQLayer
from vqfast.nn.calls import typed_as
from vqfast.saving.models import loadable

if TYPE_CHECKING:
    from typing_extensions import Self


@loadable
class SecondStage(Autoencoder):
    """A trained model with a VQ-VAE over its coarsest codes, whose codes are one more, coarser level.

    The second model encodes and decodes the code vectors of the first one, which stays as it is. A prior of
    the second codes, and a prior of the first codes given the second ones, then draw new items.

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning", section 4.2, where the second
    decoder is a PixelCNN of the first codes given the second ones: here the prior of that level.

    Args:
        first: a trained model; its parameters no longer take gradients.
        second: ``in_channels`` is the dimension of the first model's coarsest code vectors.

    Raises:
        TypeError: an argument is no model.
        ValueError: the models don't fit.

    Example:
        >>> first = vqfast.VQVAE(hidden_channels=8, embedding_dim=4)
        >>> second = vqfast.VQVAE(in_channels=4, hidden_channels=8, num_downsamplings=1)
        >>> model = vqfast.models.SecondStage(first, second)
        >>> coarse, fine = model.encode_levels(torch.rand(1, 3, 32, 32))
        >>> coarse.shape, fine.shape
        (torch.Size([1, 4, 4]), torch.Size([1, 8, 8]))
        >>> model.decode_levels([coarse]).shape  # from the second codes alone
        torch.Size([1, 3, 32, 32])
    """

    architecture = "second-stage"

    def __init__(self, first: Autoencoder, second: VQVAE) -> None:
        super().__init__()
        if not isinstance(first, Autoencoder):
            raise TypeError(f"first is a {type(first).__name__}; want a model such as VQVAE")
        if not isinstance(second, VQVAE):
            raise TypeError(f"second is a {type(second).__name__}; want a VQVAE")
        self.first, self.second = first.requires_grad_(False).eval(), second
        self.in_channels, self.ndim, self.value_range = first.in_channels, first.ndim, first.value_range
        self.strides = (first.stride * second.stride, *first.strides)
        wanted = (self._layer.embedding_dim, first.ndim)
        if (second.in_channels, second.ndim) != wanted:
            raise ValueError(
                f"second has in_channels and ndim {(second.in_channels, second.ndim)}; want {wanted}, the "
                "dimension of the first model's code vectors and its ndim"
            )

    @property
    def _layer(self) -> VQLayer:
        """The quantiser of the first model's coarsest level."""
        return cast(VQLayer, self.first.quantizers[0])

    @property
    def config(self) -> dict[str, Any]:
        """The two models, as the constructor takes them."""
        return {"first": self.first, "second": self.second}

    @property
    def quantizers(self) -> tuple[nn.Module, ...]:
        """The quantiser of each level; the first is that of the second model."""
        return (*self.second.quantizers, *self.first.quantizers)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of the second model; the first one stays in eval mode."""
        super().train(mode)
        self.first.eval()
        return self

    def forward(self, x: Tensor) -> HierarchicalOutput:
        """Encodes, quantises and decodes ``x``.

        Args:
            x: floating point ``(B, in_channels, *spatial)``, of the model's dtype.

        Returns:
            ``loss`` is what the second model learns by: the squared error of the code vectors over their
            variance, and its layer's loss. ``reconstruction`` is that of the second codes alone, without
            gradient.

        Raises:
            TypeError, ValueError: as in ``VQVAE.forward``.
        """
        self._check_input(x)
        with torch.no_grad():
            grids = self.first.encode_levels(x)
            vectors = self._layer.decode(grids[0])
        out = self.second(vectors)
        scale = vectors.var(correction=0).clamp(min=1e-12)
        loss = F.mse_loss(out.reconstruction, vectors) / scale + out.loss
        with torch.no_grad():
            reconstruction = self._from_vectors(out.reconstruction.detach())
        return HierarchicalOutput(reconstruction, [out.indices, *grids], loss)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self, *args: Any, **options: Any) -> Any: ...

    @torch.no_grad()
    def encode_levels(self, x: Tensor) -> list[Tensor]:
        """The second model's codes of ``x``, then the first one's.

        Raises:
            TypeError, ValueError: as in ``forward``.
        """
        self._check_input(x)
        grids = self.first.encode_levels(x)
        return [self.second.encode(self._layer.decode(grids[0])), *grids]

    def decode_levels(self, indices: Sequence[Tensor]) -> Tensor:
        """What the first decoder makes of its own codes, or of those that the second codes stand for.

        Args:
            indices: for each level, from the coarsest; finer levels may be left out.

        Raises:
            TypeError, ValueError: as in ``VQVAE.decode``, or there are too many levels.
        """
        if isinstance(indices, Tensor) or not 1 <= len(indices) <= len(self.strides):
            raise ValueError(f"indices has {len(indices)} levels; want 1..{len(self.strides)} in a list")
        if len(indices) == 1:
            return self._from_vectors(self.second.decode(indices[0]))
        return self.first.decode_levels(indices[1:])

    def _from_vectors(self, vectors: Tensor) -> Tensor:
        """What the first decoder makes of the codes that are nearest to vectors."""
        return self.first.decode_levels([self._layer.encode(vectors)])
