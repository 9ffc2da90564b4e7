"""VQ-VAEs with several levels of codes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.checks import Device, check_choice, check_integer, check_number, check_placement, check_tensor
from vqfast.models.architectures import Architecture, check_ndim, chosen
from vqfast.models.autoencoder import Autoencoder
from vqfast.models.in_place import relus_in_place
from vqfast.models.levels import Level
from vqfast.models.quantizers import RANDOM_START, LayerOptions, make_layer
from vqfast.models.ruseckas import build_ruseckas_hierarchical
from vqfast.models.vqvae2 import build_vqvae2
from vqfast.nn.calls import typed_as
from vqfast.nn.sharded import whole
from vqfast.saving.models import loadable

if TYPE_CHECKING:
    from typing_extensions import Unpack

HIERARCHIES = {
    "vqvae2": Architecture(
        build_vqvae2,
        (1, 2, 3),
        {
            "num_levels": 2,
            "num_downsamplings": 2,
            "hidden_channels": 128,
            "residual_channels": 64,
            "num_residual_blocks": 2,
            "embedding_dim": 64,
        },
    ),
    "ruseckas-hierarchical": Architecture(
        build_ruseckas_hierarchical,
        (2,),
        {"num_levels": 6, "hidden_channels": 512, "image_size": 128},
        channels_last=False,  # its finest levels have one channel, and few
    ),
}


class HierarchicalOutput(NamedTuple):
    """What a ``HierarchicalVQVAE`` returns.

    Attributes:
        reconstruction: the decoder's output, of the input's shape.
        indices: for each level, from the coarsest, int64 ``(B, *shape)``.
        loss: the quantisers' and priors', a scalar to add to the reconstruction loss.

    Example:
        >>> out = vqfast.HierarchicalVQVAE(hidden_channels=8)(torch.randn(2, 3, 16, 16))
        >>> out.reconstruction.shape, [indices.shape for indices in out.indices]
        (torch.Size([2, 3, 16, 16]), [torch.Size([2, 2, 2]), torch.Size([2, 4, 4])])
    """

    reconstruction: Tensor
    indices: list[Tensor]
    loss: Tensor


@loadable
class HierarchicalVQVAE(Autoencoder):
    """A VQ-VAE with several levels of codes, each twice as fine as the one before.

    Levels are in order from the coarsest, everywhere. Each is quantised knowing the code vectors of the
    coarser ones, and the decoder sees all.

    Architectures:

    - ``"vqvae2"``: Razavi et al. 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2" (arXiv
      1906.00446), section 3.1, for two levels or more, and ``ndim`` 1 to 3.
      ``HierarchicalVQVAE.named("vqvae2")`` has the paper's moving average. The whole loss is
      ``F.mse_loss(out.reconstruction, x) + out.loss``.
    - ``"ruseckas-hierarchical"``: J. Ruseckas' notebook "Hierarchical VQ-VAE": a level at every resolution,
      with a prior that predicts all codes of a level at once from the coarser levels. ``loss`` includes the
      priors' cross-entropies, each in nats for one value of the input. The whole loss is
      ``F.l1_loss(out.reconstruction, x) + out.loss``. The output is in 0 to 1.

    Args:
        architecture: ``"vqvae2"`` or ``"ruseckas-hierarchical"``, see above.
        in_channels: C.
        ndim: the number of spatial axes; 2 for ``"ruseckas-hierarchical"``.
        num_levels: ``None`` for 2, or 6 for ``"ruseckas-hierarchical"``.
        hidden_channels: the width of the widest layer; ``None`` for 128, or 512.
        num_downsamplings: how many times every axis is halved before the finest level; ``None`` for 2 in
            ``"vqvae2"``; the other has a level at full resolution.
        residual_channels, num_residual_blocks: ``None`` for 64 and 2 in ``"vqvae2"``; the other has no
            residual blocks.
        embedding_dim: D; ``None`` for 64 in ``"vqvae2"``. The other has a sixteenth of each level's width.
        image_size: height and width of the inputs, which ``"ruseckas-hierarchical"`` fixes; ``None`` for 128.
        num_embeddings: K of every level; ``None`` for 512.
        level_dropout: the share of the items in training that keep a random number of their coarsest levels
            only; as in ``decode``, stand-ins take the place of the other code vectors. Otherwise the finest
            level may carry everything, as Dhariwal et al. 2020 (arXiv 2005.00341) found in their models.
        device, dtype: of all parameters and buffers, as in ``torch.nn``.
        options: all other options of ``VQLayer`` but ``channel_dim``, see ``LayerOptions``.

    Attributes:
        encoder, levels, decoder: the modules; ``levels[i].vq`` is the ``VQLayer`` of level i.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or doesn't go with the architecture.

    Example:
        >>> model = vqfast.HierarchicalVQVAE.named("vqvae2", hidden_channels=16, num_levels=3)
        >>> top, middle, bottom = model.encode(torch.rand(1, 3, 64, 64))
        >>> top.shape, middle.shape, bottom.shape
        (torch.Size([1, 4, 4]), torch.Size([1, 8, 8]), torch.Size([1, 16, 16]))
        >>> model.decode([top]).shape  # from the coarsest level alone
        torch.Size([1, 3, 64, 64])
    """

    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {
        "vqvae2": {"architecture": "vqvae2", "decay": 0.99},
        "ruseckas-hierarchical": {
            "architecture": "ruseckas-hierarchical",
            "num_embeddings": 128,
            **RANDOM_START,
        },
    }

    def __init__(
        self,
        architecture: str = "vqvae2",
        *,
        in_channels: int = 3,
        ndim: int = 2,
        num_levels: int | None = None,
        hidden_channels: int | None = None,
        num_downsamplings: int | None = None,
        residual_channels: int | None = None,
        num_residual_blocks: int | None = None,
        embedding_dim: int | None = None,
        image_size: int | None = None,
        num_embeddings: int | None = None,
        level_dropout: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__()
        check_placement(device, dtype)
        check_choice("architecture", architecture, HIERARCHIES)
        kind = HIERARCHIES[architecture]
        check_integer("in_channels", in_channels)
        check_ndim(ndim, kind.ndims, architecture)
        check_integer("num_embeddings", num_embeddings, optional=True)
        check_number("level_dropout", level_dropout, minimum=0, below=1)
        sizes = chosen(
            f"architecture {architecture!r}",
            kind.defaults,
            num_levels=num_levels,
            hidden_channels=hidden_channels,
            num_downsamplings=num_downsamplings,
            residual_channels=residual_channels,
            num_residual_blocks=num_residual_blocks,
            embedding_dim=embedding_dim,
            image_size=image_size,
        )
        self.architecture, self.in_channels, self.ndim, self.sizes = architecture, in_channels, ndim, sizes
        self.level_dropout = level_dropout
        finest = sizes.get("num_downsamplings", 0)
        self.strides = tuple(2 ** (finest + i) for i in reversed(range(sizes["num_levels"])))
        layer = partial(make_layer, 512 if num_embeddings is None else num_embeddings, options=options)
        with nullcontext() if device is None else torch.device(device):
            self.encoder, levels, self.decoder = kind.build(ndim, in_channels, layer, **sizes)
            self.levels = cast("Sequence[Level]", nn.ModuleList(levels))
        kind.place(self, ndim, device, dtype)
        relus_in_place(self)

    @property
    def config(self) -> dict[str, Any]:
        """A JSON-able dict; ``HierarchicalVQVAE(**model.config)`` is a new model of the same kind."""
        layer = self.levels[0].vq.arguments()
        return {
            "architecture": self.architecture,
            "in_channels": self.in_channels,
            "ndim": self.ndim,
            **self.sizes,
            "level_dropout": self.level_dropout,
            **{name: layer[name] for name in ("num_embeddings", *LayerOptions.__annotations__)},
        }

    @property
    def quantizers(self) -> tuple[nn.Module, ...]:
        """The ``VQLayer`` of each level."""
        return tuple(level.vq for level in self.levels)

    def forward(self, x: Tensor) -> HierarchicalOutput:
        """Encodes, quantises and decodes ``x``.

        Args:
            x: floating point ``(B, in_channels, *spatial)``, of the model's dtype.

        Raises:
            TypeError: ``x`` isn't a floating-point tensor, or has another dtype than the model.
            ValueError: the shape doesn't fit the model, ``x`` is empty, or is on another device.
        """
        self._check_input(x)
        grids: list[Tensor] = []
        losses: list[Tensor] = []
        state: Tensor | None = None
        kept = self._kept(x) if self.training and self.level_dropout else None
        for number, (level, features) in enumerate(zip(self.levels, self.encoder(x), strict=True)):
            context = level.enter(state, len(x))
            quantized, indices, loss = level.vq(level.vectors(features, context))
            grids.append(indices)
            losses.append(loss)
            logits = level.logits(context)
            if logits is not None:
                losses.append(F.cross_entropy(logits, indices) * (indices[0].numel() / x[0].numel()))
            if kept is not None and context is not None and number:
                keeps = (kept > number).view(-1, *[1] * (x.ndim - 1))
                quantized = torch.where(keeps, quantized, level.stand_in(context))
            state = level.join(quantized, context)
        return HierarchicalOutput(self.decoder(state), grids, torch.stack(losses).sum())

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self, *args: Any, **options: Any) -> Any: ...

    @whole
    @torch.no_grad()
    def encode(self, x: Tensor) -> list[Tensor]:
        """The codes of ``x``.

        Args:
            x: as in ``forward``.

        Returns:
            For each level, from the coarsest, int64 ``(B, *shape)`` for each of ``code_shapes(spatial)``;
            heads stand last.

        Raises:
            TypeError, ValueError: as in ``forward``.
        """
        self._check_input(x)
        grids: list[Tensor] = []
        state: Tensor | None = None
        for level, features in zip(self.levels, self.encoder(x), strict=True):
            context = level.enter(state, len(x))
            grids.append(level.vq.encode(level.vectors(features, context)))
            state = level.join(level.vq.decode(grids[-1]), context)
        return grids

    @whole
    def decode(self, indices: Sequence[Tensor]) -> Tensor:
        """What the decoder makes of codes.

        Args:
            indices: for each level, from the coarsest, integer ``(B, *shape)``, -1 to K - 1; -1 stands for a
                zero vector. Finer levels may be left out: what stands in for them are zero vectors in
                ``"vqvae2"``, the most likely codes of their priors in ``"ruseckas-hierarchical"``.

        Returns:
            ``(B, in_channels, *spatial)``.

        Raises:
            TypeError: ``indices`` isn't a sequence of integer tensors.
            ValueError: there is no level or one too many, an index is out of range, the shapes aren't the
                model's, or the devices differ.
        """
        self._check_grids(indices)
        state: Tensor | None = None
        for number, level in enumerate(self.levels):
            context = level.enter(state, len(indices[0]))
            known = number < len(indices)
            vectors = level.vq.decode(indices[number]) if known else level.stand_in(cast(Tensor, context))
            state = level.join(vectors, context)
        decoded: Tensor = self.decoder(state)
        return decoded

    @whole
    @torch.no_grad()
    def sample(self, num: int, *, temperature: float = 1.0, seed: int = 0) -> list[Tensor]:
        """Draws codes from the levels' own priors: level by level, all positions of a level at once.

        Args:
            num: how many items.
            temperature: what the logits are divided by.
            seed: fixes the draws, on one device and version of torch.

        Returns:
            As ``encode``.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range, or the levels have no priors.

        Example:
            >>> model = vqfast.HierarchicalVQVAE.named(
            ...     "ruseckas-hierarchical", num_levels=2, hidden_channels=32, image_size=8
            ... ).eval()
            >>> top, bottom = model.sample(3)
            >>> model.decode([top, bottom]).shape
            torch.Size([3, 3, 8, 8])
        """
        check_integer("num", num)
        check_number("temperature", temperature, above=0)
        check_integer("seed", seed, 0)
        generator = torch.Generator(next(self.parameters()).device).manual_seed(seed)
        grids: list[Tensor] = []
        state: Tensor | None = None
        for level in self.levels:
            context = level.enter(state, num)
            logits = level.logits(context)
            if logits is None:
                raise ValueError(f"architecture is {self.architecture!r}; want 'ruseckas-hierarchical'")
            gumbel = -torch.empty_like(logits).exponential_(generator=generator).log()
            grids.append((logits / temperature + gumbel).argmax(1))
            state = level.join(level.vq.decode(grids[-1]), context)
        return grids

    @property
    def has_priors(self) -> bool:
        """Whether the levels have priors of their own."""
        return self.architecture == "ruseckas-hierarchical"

    def prior_logits(self, coarser: Sequence[Tensor], num: int) -> Tensor:
        """Logits of the codes of a level under the model's own prior.

        Args:
            coarser: int64 ``(num, *shape)`` for each coarser level, from the coarsest.
            num: how many items.

        Returns:
            ``(num, K, *shape)``, of the level that follows the coarser ones.

        Raises:
            ValueError: the levels have no priors, or there is no finer level.
        """
        if not self.has_priors or len(coarser) >= len(self.levels):
            wanted = f"less than {len(self.levels)}, and architecture 'ruseckas-hierarchical'"
            raise ValueError(f"coarser has {len(coarser)} levels; want {wanted}")
        state: Tensor | None = None
        for level, indices in zip(self.levels, coarser, strict=False):
            state = level.join(level.vq.decode(indices), level.enter(state, num))
        finer = self.levels[len(coarser)]
        return cast(Tensor, finer.logits(finer.enter(state, num)))

    def encode_levels(self, x: Tensor) -> list[Tensor]:
        """``encode``, under the name that all models have."""
        return self.encode(x)

    def decode_levels(self, indices: Sequence[Tensor]) -> Tensor:
        """``decode``, under the name that all models have."""
        return self.decode(indices)

    def _kept(self, x: Tensor) -> Tensor:
        """How many of its coarsest levels each item keeps, int64 ``(B,)``."""
        drops = torch.rand(len(x), device=x.device) < self.level_dropout
        fewer = torch.randint(1, len(self.levels), (len(x),), device=x.device)
        return torch.where(drops, fewer, len(self.levels))

    def _check_grids(self, indices: Sequence[Tensor]) -> None:
        if isinstance(indices, Tensor) or not isinstance(indices, Sequence):
            raise TypeError(f"indices is a {type(indices).__name__}; want a list, one tensor for each level")
        if not 1 <= len(indices) <= len(self.levels):
            raise ValueError(f"indices has {len(indices)} levels; want 1..{len(self.levels)}")
        for number, grid in enumerate(indices):
            check_tensor(f"indices[{number}]", grid)
        spatial = [size * self.stride for size in indices[0].shape[1 : self.ndim + 1]]
        try:
            shapes = self.code_shapes(spatial)
        except ValueError as error:
            raise ValueError(f"indices[0] has shape {tuple(indices[0].shape)}: {error}") from None
        heads = () if self.levels[0].vq.heads == 1 else (self.levels[0].vq.heads,)
        for number, (grid, shape) in enumerate(zip(indices, shapes, strict=False)):
            wanted = (len(indices[0]), *shape, *heads)
            if grid.shape != wanted or not grid.numel():
                raise ValueError(f"indices[{number}] has shape {tuple(grid.shape)}; want {wanted}, not empty")

    @property
    def _spatial(self) -> str:
        size = self.sizes.get("image_size")
        return super()._spatial if size is None else f"({size}, {size}), the model's image_size"

    def _check_spatial(self, spatial: Sequence[int]) -> None:
        size = self.sizes.get("image_size")
        if size is not None and any(found != size for found in spatial):
            raise ValueError(f"spatial is {tuple(spatial)}; want {self._spatial}")
        super()._check_spatial(spatial)
