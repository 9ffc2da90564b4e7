"""The vector-quantisation layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from vqfast import functional
from vqfast.checks import (
    Device,
    check_choice,
    check_flags,
    check_indices,
    check_integer,
    check_mask,
    check_number,
    check_sizes,
)
from vqfast.functional import Quantized
from vqfast.nn import passes
from vqfast.nn.codebook import Batch, Codebook, Kept, masked_statistics
from vqfast.nn.projection import Projection
from vqfast.nn.sharded import whole
from vqfast.ops import dims

GRADIENTS = ("straight-through", "rotation")
CHANNEL_DIMS = -5, 4  # of the five that vectors can have, batch and space and time included


class VQOutput(NamedTuple):
    """What a ``VQLayer`` returns.

    ``quantized``: shape and dtype of ``z_e`` (its layout too, where no heads or projections rearrange it),
    with the gradient that ``gradient`` says. ``indices``: int64, the shape of ``z_e`` without its channels,
    and with several heads these last. ``loss``: a scalar to add to the reconstruction loss.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor


class LossParts(NamedTuple):
    """``codebook``: ``||sg[z_e] - z_q||^2``, ``commitment``: ``||z_e - sg[z_q]||^2``; unweighted means."""

    codebook: Tensor
    commitment: Tensor


def pass_gradient(z: Tensor, z_q: Tensor, gradient: str, dim: int) -> Tensor:
    """``z_q`` to the bit, with a gradient to ``z`` in place of its own.

    ``"straight-through"`` copies it. ``"rotation"`` turns and scales it as ``z`` is turned and scaled to
    ``z_q`` (Fifty et al. 2024, arXiv 2410.06424, section 4.2): ``z_q = l R z``, ``l = |z_q| / |z|``,
    ``R = I - 2 r r^T + 2 q e^T`` with unit vectors ``e`` of z, ``q`` of z_q, ``r`` of e + q; ``l`` and ``R``
    count as constants. A zero vector, which can't be turned, gets the straight-through gradient.
    """
    source, target = z.detach(), z_q.detach()
    step = z - source  # zero, with the gradient of z
    if gradient == "rotation":
        length = torch.linalg.vector_norm(source, dim=dim, keepdim=True)
        e, q = functional.unit(source, channel_dim=dim), functional.unit(target, channel_dim=dim)
        r = functional.unit(e + q, channel_dim=dim)
        turned = step - 2 * r * (r * step).sum(dim, keepdim=True) + 2 * q * (e * step).sum(dim, keepdim=True)
        scale = torch.linalg.vector_norm(target, dim=dim, keepdim=True) / torch.where(length > 0, length, 1)
        step = torch.where(length > 0, scale * turned, step)
    return target + step


class Assigned(NamedTuple):
    """``VQLayer.forward`` but for the learning, and what ``learn`` wants if it is to be called.

    ``started``: whether k-means came before.
    """

    output: VQOutput
    parts: LossParts
    batch: Batch | None
    started: bool


class VQLayer(Codebook):
    """Vector quantisation (van den Oord et al. 2017, arXiv 1711.00937, section 3).

    ``loss`` is ``||sg[z_e] - z_q||^2 + beta * ||z_e - sg[z_q]||^2``, means over all elements; with ``decay``
    the codebook follows an exponential moving average instead (appendix A.1) and its term is left out.

    Under torch.distributed the moving average, k-means and revival see the batch of all ranks, whatever
    each one's share; a rank may have no vectors. The loss is this rank's mean: where shares differ, weight
    the whole loss by ``world * share`` to make DistributedDataParallel's average that of the joined batch.

    The moving average is kept in float32 whatever dtype the module has. Codes that are copied or loaded into
    ``codebook`` are respected: learning goes on from them, and no k-means start overwrites them. A state
    loads into a layer of other options: what it lacks starts anew from its codebook.

    Under ``torch.utils.checkpoint``, reentrant or not, the recomputation uses the codes of the first pass and
    learns nothing, so that gradients and state are those without it. A layer that learns and is compiled, or
    runs in a backward pass of another kind, raises RuntimeError there; so it does under ``torch.func``.

    Under FSDP2 (``fully_shard``) ``encode`` and ``decode`` gather the parameters; all ranks call them alike.

    Every step but a pending k-means start can be compiled into one graph and captured in a CUDA graph; run
    the first batch before capture or export.

    Args:
        num_embeddings: K, the number of codes.
        embedding_dim: D, the channels of ``z_e``.
        beta: weight of the commitment loss.
        decay: the moving average's, in (0, 1); ``None`` learns the codebook by gradients.
        eps: Laplace smoothing of the moving average's counts.
        channel_dim: where the channels stand, 1 for ``(B, D, *spatial)``, -1 for channels last.
        metric: ``"l2"``, or ``"cosine"`` to compare, return and learn vectors and codes at length 1.
        heads: the channels are cut into that many vectors, each with an index of its own.
        separate_codebooks: whether each head has a codebook of its own, ``codebook (heads, K, D)``.
        codebook_dim: D of the codes, by default ``embedding_dim / heads``; where ``heads * codebook_dim``
            isn't ``embedding_dim``, linear maps stand around the codes, in ``projection``.
        kmeans_init: whether the first batch in training starts the codes by k-means. Where it has fewer
            distinct vectors than codes, the other codes stand near them.
        revive_below: codes used less than so many times a batch, by the moving average of their counts, are
            replaced by random vectors of the batch in training; 0 for never. SoundStream (arXiv 2107.03312,
            section III-C) has 2. Where a batch has fewer than ``revive_below * K`` vectors, no codebook could
            keep to that: the layer warns once, and revives codes below a quarter of the mean.
        gradient: ``"straight-through"`` or ``"rotation"``, see ``pass_gradient``.
        learnable: ``False`` freezes the codes; a pending k-means start still happens. See also ``freeze``.
        device, dtype: of all parameters and buffers, as in ``torch.nn``.

    Attributes:
        codebook: ``(K, D)``; a parameter, or with ``decay`` a buffer.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
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
        kmeans_init: bool = False,
        revive_below: float = 0.0,
        gradient: str = "straight-through",
        learnable: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(num_embeddings=num_embeddings, embedding_dim=embedding_dim, heads=heads)
        if codebook_dim is None:
            if embedding_dim % heads:
                raise ValueError(f"embedding_dim is {embedding_dim}; want a multiple of heads = {heads}")
            codebook_dim = embedding_dim // heads
        check_sizes(codebook_dim=codebook_dim)
        check_choice("gradient", gradient, GRADIENTS)
        check_integer("channel_dim", channel_dim, *CHANNEL_DIMS)
        check_number("beta", beta, minimum=0)
        check_flags(separate_codebooks=separate_codebooks)
        separate = separate_codebooks and heads > 1
        shape = (heads, num_embeddings, codebook_dim) if separate else (num_embeddings, codebook_dim)
        super().__init__(
            shape,
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
        self.heads, self.separate = heads, separate
        self.beta, self.channel_dim, self.gradient = beta, channel_dim, gradient
        self.projection = Projection(
            embedding_dim, heads * codebook_dim, channel_dim, last=heads > 1, device=device, dtype=dtype
        )

    @overload
    def forward(
        self, z_e: Tensor, mask: Tensor | None = None, *, return_parts: Literal[False] = False
    ) -> VQOutput: ...
    @overload
    def forward(
        self, z_e: Tensor, mask: Tensor | None = None, *, return_parts: Literal[True]
    ) -> tuple[VQOutput, LossParts]: ...
    def forward(
        self, z_e: Tensor, mask: Tensor | None = None, *, return_parts: bool = False
    ) -> VQOutput | tuple[VQOutput, LossParts]:
        """Quantises ``z_e``; in training mode also moves the codebook, as the options say.

        Args:
            z_e: floating point ``(B, D)``, ``(B, D, T)``, ``(B, D, H, W)``, ``(B, D, T, H, W)`` or, with
                ``channel_dim=-1``, the same with ``D`` last.
            mask: bool ``(B, *spatial)``, ``False`` at padding: quantised to zero with index -1, and without
                influence on anything else, even a NaN.
            return_parts: whether to return ``(VQOutput, LossParts)``.

        Raises:
            TypeError: ``z_e`` isn't a floating-point tensor, or ``mask`` no bool one.
            ValueError: ``z_e`` is empty (and no other rank could have vectors), its channels aren't
                ``embedding_dim``, or ``mask`` has another shape.
        """
        kept = passes.recall(self, self.follows or self.starts)
        output, parts, batch, started = self.assign(z_e, mask, kept)
        if kept is not None:
            self.draw_again(kept)
        elif batch is not None or started:
            passes.note(self, lambda: self.keep(started))
        if batch is not None:
            self.learn(batch)
        return (output, parts) if return_parts else output

    if TYPE_CHECKING:
        __call__ = forward

    def assign(self, z_e: Tensor, mask: Tensor | None, kept: Kept | None = None) -> Assigned:
        """``forward`` but for the learning; as the pass that ``kept`` its codes, without any."""
        z, dim = self._vectors(z_e, mask)
        follows, starts = (self.follows, self.starts) if kept is None else (False, False)
        rows: Any = None  # vectors and their mask, where they are wanted
        counted: Any = None
        if starts or (follows and (self.revive_below or mask is not None)):
            rows, counted = self._flat(z.detach(), dim, mask)
        if starts:
            self.start(rows, counted)
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
                books = rows.shape[1]
                found = masked_statistics(rows, out.indices.reshape(-1, books), counted, self.num_embeddings)
                counts, sums = found if self.separate else (part.squeeze(0) for part in found)
            batch = Batch(rows if self.revive_below else None, counted, counts, sums)
        straight = self.gradient == "straight-through"
        quantized = out.quantized if straight else pass_gradient(z, out.quantized, self.gradient, dim)
        quantized = self._restore(quantized, mask).to(z_e.dtype)
        output = VQOutput(quantized, self._hide(out.indices, mask), self.weigh(parts))
        return Assigned(output, parts, batch, starts)

    def weigh(self, parts: LossParts) -> Tensor:
        """The loss that these parts make."""
        loss = self.beta * parts.commitment
        return loss + parts.codebook if self.decay is None and self.learnable else loss

    @whole
    @torch.no_grad()
    def encode(self, z_e: Tensor, mask: Tensor | None = None) -> Tensor:
        """Indices of ``z_e``'s vectors, int64; shapes and errors as in ``forward``."""
        z, dim = self._vectors(z_e, mask)
        return self._hide(self._nearest(z, dim, mask)[1].indices, mask)

    @whole
    def decode(self, indices: Tensor, mask: Tensor | None = None) -> Tensor:
        """Codes of integer ``indices (B, *spatial)``: ``(B, D, *spatial)``, or with ``D`` last.

        Several heads stand last in ``indices``. Where ``mask (B, *spatial)`` is ``False`` they aren't looked
        at, and the result is zero.

        Raises:
            TypeError: ``indices`` aren't integers.
            ValueError: an index is out of range, or a shape doesn't fit.
        """
        if mask is not None and isinstance(indices, Tensor):
            check_mask(mask, indices.unsqueeze(-1) if self.heads == 1 else indices, -1)
            indices = torch.where(self._by_head(mask), indices, 0)
        check_indices("indices", indices, self.num_embeddings)
        if self.heads > 1 and (indices.ndim < 1 or indices.shape[-1] != self.heads):
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}; want (B, *spatial, {self.heads} heads)"
            )
        self.projection.check_place(indices, indices.ndim + (self.heads == 1))
        return self.look_up(indices, mask)

    def look_up(self, indices: Tensor, mask: Tensor | None = None) -> Tensor:
        """``decode`` without the checks, which wait for the host; indices that ``mask`` hides may be -1."""
        codes, indices = self.codes(), indices.long().clamp(min=0)
        if self.separate:
            quantized = codes[torch.arange(self.heads, device=indices.device), indices]
        else:
            quantized = codes[indices]
        dim = -1 if self.heads > 1 else self.projection.dim
        return self._restore(dims.move(quantized, -1, dim), mask)

    def perplexity(self, indices: Tensor) -> Tensor:
        """How many codes ``indices`` use, as ``functional.perplexity``; take masked ones out before."""
        return functional.perplexity(indices, self.num_embeddings)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        rule = "gradient" if self.decay is None else f"decay={self.decay}"
        return f"{self.num_embeddings}, {self.embedding_dim}, beta={self.beta}, {rule}"

    def _vectors(self, z_e: Tensor, mask: Tensor | None) -> tuple[Tensor, int]:
        """What is compared with the codes (with heads ``(B, *spatial, heads, D)``), and its channel dim."""
        z, dim = self.projection.enter(z_e, mask), self.projection.dim
        z = z if self.heads == 1 else z.view(*z.shape[:-1], self.heads, self.codebook_dim)
        if self.metric == "cosine":
            z = functional.unit(z, channel_dim=dim)
        return z, dim

    def _flat(self, z: Tensor, dim: int, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Vectors ``(N, C, D)`` and mask ``(N,)`` as in ``Batch``; sharing heads give that many more."""
        books = self.heads if self.separate else 1
        if mask is not None:
            mask = mask.flatten().repeat_interleave(self.heads // books)
        return z.movedim(dim, -1).reshape(-1, books, self.codebook_dim), mask

    def _nearest(
        self, z: Tensor, dim: int, mask: Tensor | None, kept: Kept | None = None, statistics: bool = False
    ) -> tuple[Tensor, Quantized]:
        """``z`` as it was quantised, and ``functional.quantize`` of it, by all heads."""
        codes = self.codes(kept)
        if mask is not None:  # a vector on a code has no loss and no gradient
            on_code = codes[..., 0, :].detach()
            shown = self._by_head(mask).unsqueeze(-1)
            z = dims.move(torch.where(shown, dims.move(z, dim, -1), on_code), -1, dim)
        if not self.separate:
            return z, functional.quantize(z, codes, channel_dim=dim, return_statistics=statistics)
        heads = zip(z.unbind(-2), codes, strict=True)
        outs = [
            functional.quantize(part, own, channel_dim=-1, return_statistics=statistics)
            for part, own in heads
        ]
        quantized, indices, *others = map(list, zip(*outs, strict=True))
        codebook_loss, commitment_loss, counts, sums = map(torch.stack, others)
        stacked = torch.stack(quantized, -2), torch.stack(indices, -1)
        return z, Quantized(*stacked, codebook_loss.mean(), commitment_loss.mean(), counts, sums)

    def _restore(self, quantized: Tensor, mask: Tensor | None) -> Tensor:
        """Codes, arranged as ``_vectors`` does, in the place of ``z_e``; zero where masked."""
        return self.projection.leave(quantized if self.heads == 1 else quantized.flatten(-2), mask)

    def _hide(self, indices: Tensor, mask: Tensor | None) -> Tensor:
        """-1 where masked."""
        if mask is None:
            return indices
        return torch.where(self._by_head(mask), indices, -1)

    def _by_head(self, mask: Tensor) -> Tensor:
        """``mask`` against indices."""
        return mask if self.heads == 1 else mask.unsqueeze(-1)
