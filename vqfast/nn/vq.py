"""The vector-quantisation layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqfast import functional
from vqfast.checks import (
    Device,
    check_choice,
    check_flags,
    check_integer,
    check_number,
    check_sizes,
)
from vqfast.functional import Quantized
from vqfast.nn import passes
from vqfast.nn.batch import Batch, masked_statistics, vectors_of
from vqfast.nn.codebook import REVIVE_BELOW, Codebook, Kept
from vqfast.nn.describe import arguments_of, describe
from vqfast.nn.gradient import GRADIENTS, pass_gradient
from vqfast.nn.indices import visible
from vqfast.nn.outputs import LossParts, VQOutput
from vqfast.nn.projection import Projection
from vqfast.nn.quantizer import Quantizer
from vqfast.nn.sharded import whole
from vqfast.ops import dims


class Assigned(NamedTuple):
    """A forward pass before the layer learns from it.

    Attributes:
        batch: what ``learn`` takes, or ``None`` where the layer doesn't learn.
        started: whether the pass started the code vectors by k-means.
    """

    output: VQOutput
    parts: LossParts
    batch: Batch | None
    started: bool


class VQLayer(Quantizer, Codebook):
    """Vector quantisation: each vector is replaced by its nearest code vector.

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning" (arXiv 1711.00937), section 3.

    ``loss`` is ``mean((sg[z_e] - z_q)^2) + beta * mean((z_e - sg[z_q])^2)`` (equation 3). With ``decay`` the
    codebook follows an exponential moving average (appendix A.1) and the first term is left out.

    By default the code vectors start from the first batch in training, and codes that fall out of use become
    vectors of the batch, so the codebook doesn't collapse where the vectors lie far from zero, are tiny or
    huge, or move while the encoder learns. Until that batch ``encode``, ``decode`` and eval mode use the
    random code vectors. With ``kmeans_init=False, revive_below=0`` and no ``decay`` the codebook moves by the
    optimiser's steps alone.

    The moving average is kept in float32 at the least. Code vectors that are copied or loaded into
    ``codebook`` stay: learning goes on from them, and no k-means start overwrites them. A state of a layer
    with other options loads; what is missing in it starts anew from its codebook.

    Under torch.distributed the moving average, k-means and revival see the joined batch of all ranks, of
    which a rank may have any share, or nothing. The loss is the mean over this rank's vectors. Where shares
    differ, multiply the whole loss by ``world size * share`` so that DistributedDataParallel averages the
    gradients of the joined batch.

    Under ``torch.utils.checkpoint`` the recomputation uses the code vectors of the first pass and learns
    nothing, so gradients and state are those without a checkpoint. A layer that learns raises RuntimeError in
    any other backward pass, under ``torch.func``, and where it is compiled and checkpointed. Under FSDP2
    (``fully_shard``) ``encode`` and ``decode`` gather the parameters, so all ranks must call them alike.
    Every step can be compiled into one graph and captured in a CUDA graph, apart from the k-means start: run
    the first batch before.

    Args:
        num_embeddings: K, the number of codes.
        embedding_dim: D, the channels of ``z_e``.
        beta: weight of the commitment loss.
        decay: of the moving average, between 0 and 1; ``None`` learns the codebook by gradients.
        eps: Laplace smoothing of the moving average's counts.
        channel_dim: the dimension of the channels: 1 for ``(B, D, *spatial)``, -1 for channels last.
        metric: ``"l2"``, or ``"cosine"``, which compares, returns and learns vectors of length 1.
        heads: the number of parts into which the channels are cut; each part has an index of its own.
        separate_codebooks: whether each head has a codebook of its own; ``codebook`` is ``(heads, K, D)``.
        codebook_dim: the length of the code vectors, by default ``embedding_dim / heads``. With another
            length linear maps stand around the codebook, in ``projection``.
        kmeans_init: whether the first batch in training starts the code vectors by k-means, from 16384 or 8 K
            of its vectors, whichever is more. With fewer distinct vectors than codes, the other code vectors
            stand near them.
        revive_below: a code whose moving average of counts is below this number is replaced by a random
            vector of the batch in training; 0 for never. SoundStream (arXiv 2107.03312, section III-C) uses
            2. Where a batch has fewer than ``revive_below * K`` vectors, the threshold is a quarter of the
            mean count, and a layer that was given more than 1 warns once.
        gradient: ``"straight-through"``, or ``"rotation"`` (Fifty et al. 2024, arXiv 2410.06424), which turns
            and scales the gradient as the vector is turned and scaled to its code vector.
        learnable: ``False`` freezes the code vectors after a k-means start, if any; see also ``freeze``.
        device, dtype: of all parameters and buffers, as in ``torch.nn``.

    Attributes:
        codebook: ``(K, D)``; a parameter, or with ``decay`` a buffer.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Example:
        >>> vq = vqfast.VQLayer(512, 64, decay=0.99)
        >>> z_e = torch.randn(2, 64, 8, 8, requires_grad=True)
        >>> quantized, indices, loss = vq(z_e)
        >>> quantized.shape, indices.shape, loss.shape
        (torch.Size([2, 64, 8, 8]), torch.Size([2, 8, 8]), torch.Size([]))
        >>> vq
        VQLayer(
          512, 64, decay=0.99
          (projection): Projection()
        )
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        beta: float = 0.25,
        decay: float | None = None,
        eps: float = 1e-5,
        channel_dim: int = 1,
        metric: str = "l2",
        heads: int = 1,
        separate_codebooks: bool = False,
        codebook_dim: int | None = None,
        kmeans_init: bool = True,
        revive_below: float = REVIVE_BELOW,
        gradient: str = "straight-through",
        learnable: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(num_embeddings=num_embeddings, embedding_dim=embedding_dim, heads=heads)
        check_integer("codebook_dim", codebook_dim, optional=True)
        if codebook_dim is None:
            if embedding_dim % heads:
                raise ValueError(f"embedding_dim is {embedding_dim}; want a multiple of heads = {heads}")
            codebook_dim = embedding_dim // heads
        check_choice("gradient", gradient, GRADIENTS)
        check_number("beta", beta, minimum=0)
        check_flags(separate_codebooks=separate_codebooks)
        separate = separate_codebooks and heads > 1
        super().__init__(
            (heads, num_embeddings, codebook_dim) if separate else (num_embeddings, codebook_dim),
            decay=decay,
            eps=eps,
            metric=metric,
            kmeans_init=kmeans_init,
            revive_below=revive_below,
            learnable=learnable,
            device=device,
            dtype=dtype,
        )
        self.embedding_dim, self.codebook_dim = embedding_dim, codebook_dim
        self.heads, self.separate_codebooks, self.separate = heads, separate_codebooks, separate
        self.beta, self.channel_dim, self.gradient = beta, channel_dim, gradient
        self.projection = Projection(
            embedding_dim, heads * codebook_dim, channel_dim, last=heads > 1, device=device, dtype=dtype
        )

    def reset_parameters(self) -> None:
        """Draws the code vectors, and the maps of ``projection``, anew; restarts the moving average."""
        super().reset_parameters()
        self.projection.reset_parameters()

    def quantize(self, z_e: Tensor, mask: Tensor | None) -> tuple[VQOutput, LossParts]:
        """``forward``, with the parts of the loss."""
        kept = passes.recall(self, self.follows or self.starts)
        output, parts, batch, started = self.assign(z_e, mask, kept)
        if kept is not None:
            self.draw_again(kept)
        elif batch is not None or started:
            passes.note(self, lambda: self.keep(started))
        if batch is not None:
            self.learn(batch)
        return output, parts

    def assign(self, z_e: Tensor, mask: Tensor | None, kept: Kept | None = None) -> Assigned:
        """``forward`` without learning; with ``kept`` by the codebook of that pass, and without a start."""
        z, dim = self._vectors(z_e, mask)
        follows, starts = (self.follows, self.starts) if kept is None else (False, False)
        vectors: Any = None  # ``(N, C, D)`` and their mask, only where needed
        shown: Any = None
        if starts or (follows and mask is not None):
            vectors, shown = self._flat(z.detach(), dim, mask)
        if starts:
            self.start(vectors, shown)
        z, out = self._nearest(z, dim, mask, kept, statistics=follows and mask is None)
        parts = LossParts(out.codebook_loss, out.commitment_loss)
        if mask is not None:  # masked vectors added nothing to the sum
            parts = LossParts(*(part * mask.numel() / mask.sum().clamp(min=1) for part in parts))
        if z_e.numel() == 0:  # another rank has the vectors
            parts = LossParts(*(part.nan_to_num() for part in parts))
        batch = None
        if follows:
            counts, sums = out.counts, out.sums
            if mask is not None:
                indices = out.indices.reshape(-1, vectors.shape[1])
                found = masked_statistics(vectors, indices, shown, self.num_embeddings)
                counts, sums = found if self.separate else (part.squeeze(0) for part in found)
            revivers = vectors_of(z, dim, self.separate) if self.revive_below else None
            batch = Batch(revivers, shown, counts, sums)
        straight = self.gradient == "straight-through"
        quantized = out.quantized if straight else pass_gradient(z, out.quantized, self.gradient, dim)
        quantized = self._restore(quantized, mask).to(z_e.dtype)
        output = VQOutput(quantized, self._hide(out.indices, mask), self.weigh(parts))
        return Assigned(output, parts, batch, starts)

    def weigh(self, parts: LossParts) -> Tensor:
        """The loss that ``parts`` make."""
        loss = self.beta * parts.commitment
        return loss + parts.codebook if self.decay is None and self.learnable else loss

    @whole
    @torch.no_grad()
    def encode(self, z_e: Tensor, mask: Tensor | None = None) -> Tensor:
        """Indices of the code vectors nearest to ``z_e``, -1 where masked.

        Args:
            z_e, mask: as in ``forward``.

        Returns:
            int64 ``(B, *spatial)``, or with several heads ``(B, *spatial, heads)``.

        Raises:
            TypeError, ValueError: as in ``forward``.

        Example:
            >>> vq = vqfast.VQLayer(3, 1)
            >>> vq.set_codebook(torch.tensor([[0.0], [1.0], [2.0]]))
            >>> vq.encode(torch.tensor([[1.9], [0.2]]))
            tensor([2, 0])
        """
        z, dim = self._vectors(z_e, mask)
        return self._hide(self._nearest(z, dim, mask)[1].indices, mask)

    @whole
    def decode(self, indices: Tensor, mask: Tensor | None = None) -> Tensor:
        """The code vectors of ``indices``, arranged as ``z_e``; index -1, as ``encode`` gives it, is zero.

        Args:
            indices: integer ``(B, *spatial)``, or with several heads ``(B, *spatial, heads)``; -1 to K - 1. A
                head with -1 adds nothing.
            mask: bool ``(B, *spatial)``; where it is ``False`` indices count as -1, whatever they are.

        Returns:
            ``(B, D, *spatial)``, or with ``channel_dim=-1`` ``D`` last.

        Raises:
            TypeError: ``indices`` isn't an integer tensor.
            ValueError: an index is out of range, a shape doesn't fit, or the devices differ.

        Example:
            >>> vq = vqfast.VQLayer(3, 1)
            >>> vq.set_codebook(torch.tensor([[5.0], [6.0], [7.0]]))
            >>> vq.decode(torch.tensor([2, -1])).tolist()
            [[7.0], [0.0]]
        """
        indices, shown = visible(indices, mask, self.codebook, self.heads > 1)
        if self.heads > 1 and (indices.ndim < 1 or indices.shape[-1] != self.heads):
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}; want (B, *spatial, {self.heads} heads)"
            )
        self.projection.check_place(indices, indices.ndim + (self.heads == 1))
        return self.look_up(indices, shown)

    def look_up(self, indices: Tensor, shown: Tensor | None) -> Tensor:
        """``decode`` of int64 ``indices`` without its checks; zero where not ``shown``."""
        codebook = self.code_vectors()
        if shown is not None:
            indices = indices.clamp(min=0)
        if self.separate:
            quantized = codebook[torch.arange(self.heads, device=indices.device), indices]
        else:
            quantized = codebook[indices]
        if shown is not None and self.heads > 1:
            quantized, shown = torch.where(shown.unsqueeze(-1), quantized, 0), shown.any(-1)
        dim = -1 if self.heads > 1 else self.projection.dim
        return self._restore(dims.move(quantized, -1, dim), shown)

    def perplexity(self, indices: Tensor) -> Tensor:
        """How many codes ``indices`` use, from 1 to K; see ``functional.perplexity``.

        Index -1 isn't counted. The codes of all heads are counted together, also of separate codebooks.

        Example:
            >>> vqfast.VQLayer(8, 4).perplexity(torch.tensor([3, 3, 5, 5, -1]))
            tensor(2.)
        """
        return functional.perplexity(indices, self.num_embeddings)

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments but for ``device`` and ``dtype``: JSON makes the layer again from them.

        Example:
            >>> vqfast.VQLayer(**vqfast.VQLayer(8, 4, decay=0.9).arguments()).extra_repr()
            '8, 4, decay=0.9'
        """
        mapped = self.projection.project_in is not None
        return arguments_of(VQLayer, self, codebook_dim=self.codebook_dim if mapped else None)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return describe(VQLayer, self.arguments())

    def _vectors(self, z_e: Tensor, mask: Tensor | None) -> tuple[Tensor, int]:
        """The vectors to compare with code vectors, with heads ``(B, *spatial, heads, D)``, and their channel
        dimension.
        """
        z, dim = self.projection.enter(z_e, mask), self.projection.dim
        z = z if self.heads == 1 else z.view(*z.shape[:-1], self.heads, self.codebook_dim)
        if self.metric == "cosine":
            z = functional.unit(z, channel_dim=dim)
        return z, dim

    def _flat(self, z: Tensor, dim: int, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Vectors ``(N, C, D)`` and mask ``(N,)`` as in ``Batch``; heads that share a codebook multiply N."""
        num_codebooks = self.heads if self.separate else 1
        if mask is not None:
            mask = mask.flatten().repeat_interleave(self.heads // num_codebooks)
        return z.movedim(dim, -1).reshape(-1, num_codebooks, self.codebook_dim), mask

    def _nearest(
        self, z: Tensor, dim: int, mask: Tensor | None, kept: Kept | None = None, statistics: bool = False
    ) -> tuple[Tensor, Quantized]:
        """``z``, masked vectors replaced by code vectors, and ``functional.quantize`` of it by all heads."""
        codebook = self.code_vectors(kept)
        if mask is not None:  # a vector that equals a code vector has no loss and no gradient
            on_code = codebook[..., 0, :].detach()
            shown = self._by_head(mask).unsqueeze(-1)
            z = dims.move(torch.where(shown, dims.move(z, dim, -1), on_code), -1, dim)
        if not self.separate:
            return z, functional.quantize(z, codebook, channel_dim=dim, return_statistics=statistics)
        heads = zip(z.unbind(-2), codebook, strict=True)
        outs = [
            functional.quantize(part, own, channel_dim=-1, return_statistics=statistics)
            for part, own in heads
        ]
        quantized, indices, *others = map(list, zip(*outs, strict=True))
        codebook_loss, commitment_loss, counts, sums = map(torch.stack, others)
        stacked = torch.stack(quantized, -2), torch.stack(indices, -1)
        return z, Quantized(*stacked, codebook_loss.mean(), commitment_loss.mean(), counts, sums)

    def _restore(self, quantized: Tensor, mask: Tensor | None) -> Tensor:
        """Code vectors, arranged as ``_vectors`` does, in the place of ``z_e``; zero where masked."""
        return self.projection.leave(quantized if self.heads == 1 else quantized.flatten(-2), mask)

    def _hide(self, indices: Tensor, mask: Tensor | None) -> Tensor:
        """``indices``, -1 where masked."""
        if mask is None:
            return indices
        return torch.where(self._by_head(mask), indices, -1)

    def _by_head(self, mask: Tensor) -> Tensor:
        """``mask``, in the shape of ``indices``."""
        return mask if self.heads == 1 else mask.unsqueeze(-1)
