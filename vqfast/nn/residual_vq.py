"""Residual vector quantisation: every stage codes what the stages before it left over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, overload

import torch
from torch import Tensor, nn

from vqfast import functional
from vqfast.checks import (
    Device,
    check_choice,
    check_flags,
    check_indices,
    check_integer,
    check_mask,
    check_sizes,
)
from vqfast.nn import passes, ranks
from vqfast.nn.codebook import Batch, Kept
from vqfast.nn.projection import Projection
from vqfast.nn.sharded import whole
from vqfast.nn.vq import CHANNEL_DIMS, GRADIENTS, LossParts, VQLayer, VQOutput, pass_gradient


class _Kept(NamedTuple):
    """What a forward pass leaves to its recomputation.

    ``used``: how many stages counted, or ``None`` for all. ``plain``: whether all ran at once. ``stages``:
    what each codebook's ``keep`` gives.
    """

    used: Tensor | None
    plain: bool
    stages: list[Kept]


class ResidualVQLayer(nn.Module):
    """The quantiser of audio codecs (Zeghidour et al. 2021, SoundStream, arXiv 2107.03312, algorithm 1).

    Stage q codes the residual of the stages before it; the sum of their codes is the output, which passes
    its gradient to ``z_e`` once. ``loss`` is the sum of the stages' losses, each as ``VQLayer`` has it for
    its residual. That is kept in float32 or wider, whatever the dtype of ``z_e``. Checkpointing, loading and
    dtypes: as ``VQLayer``.

    Args:
        num_embeddings: K, the number of codes of a stage.
        embedding_dim: D, the channels of ``z_e``.
        num_quantizers: Q, the number of stages.
        beta, decay, eps, metric, revive_below, learnable: of every stage, as in ``VQLayer``.
        channel_dim: where the channels stand, 1 for ``(B, D, *spatial)``, -1 for channels last.
        codebook_dim: D of the codes; where it isn't ``embedding_dim``, linear maps stand around all
            stages together, in ``projection``.
        kmeans_init: as in ``VQLayer``; the first batch, which starts the codes, drops no stage.
        gradient: ``"straight-through"`` or ``"rotation"``, of the whole sum.
        shared_codebook: whether all stages use one codebook, which learns from all of them.
        quantize_dropout: whether in training each batch uses the first 1 to Q stages only (section III-C), a
            number drawn from torch's generator, the same on all ranks. The others give index -1 and don't
            learn. All run, so that compilation, CUDA graphs and DistributedDataParallel see one graph.
        device, dtype: of all parameters and buffers, as in ``torch.nn``.

    Attributes:
        stages: the ``VQLayer`` of each stage, or the one that they share.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        num_quantizers: int,
        *,
        beta: float = 0.25,
        decay: float | None = None,
        eps: float = 1e-5,
        channel_dim: int = 1,
        metric: str = "l2",
        codebook_dim: int | None = None,
        kmeans_init: bool = False,
        revive_below: float = 0.0,
        gradient: str = "straight-through",
        learnable: bool = True,
        shared_codebook: bool = False,
        quantize_dropout: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_quantizers=num_quantizers, embedding_dim=embedding_dim)
        check_choice("gradient", gradient, GRADIENTS)
        width = embedding_dim if codebook_dim is None else codebook_dim
        check_sizes(codebook_dim=width)
        check_integer("channel_dim", channel_dim, *CHANNEL_DIMS)
        check_flags(shared_codebook=shared_codebook, quantize_dropout=quantize_dropout)
        self.num_quantizers, self.num_embeddings = num_quantizers, num_embeddings
        self.embedding_dim, self.codebook_dim, self.channel_dim = embedding_dim, width, channel_dim
        self.quantize_dropout, self.gradient = quantize_dropout, gradient
        self.projection = Projection(embedding_dim, width, channel_dim, device=device, dtype=dtype)
        layers = (
            VQLayer(
                num_embeddings,
                width,
                beta=beta,
                decay=decay,
                eps=eps,
                channel_dim=self.projection.dim,
                metric=metric,
                kmeans_init=kmeans_init,
                revive_below=revive_below,
                learnable=learnable,
                device=device,
                dtype=dtype,
            )
            for _ in range(1 if shared_codebook else num_quantizers)
        )
        self.stages = cast("Sequence[VQLayer]", nn.ModuleList(layers))

    @property
    def codebooks(self) -> Tensor:
        """The codes of every stage: ``(Q, K, D)``."""
        return torch.stack([self._stage(q).codebook for q in range(self.num_quantizers)])

    def freeze(self, frozen: bool = True) -> None:
        """As ``VQLayer.freeze``, for all stages."""
        for stage in self.stages:
            stage.freeze(frozen)

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
        """Quantises ``z_e``; in training mode also moves the codebooks, as the options say.

        Args:
            z_e: floating point ``(B, D, *spatial)`` or, with ``channel_dim=-1``, with ``D`` last.
            mask: bool ``(B, *spatial)``, ``False`` at padding: quantised to zero with indices -1, and without
                influence on anything else.
            return_parts: whether to return ``(VQOutput, LossParts)``, the parts ``(Q,)``.

        Returns:
            ``VQOutput``: ``quantized`` as ``z_e``; ``indices`` int64 ``(B, *spatial, Q)``, -1 for a dropped
            stage; ``loss`` a scalar.

        Raises:
            TypeError, ValueError: as ``VQLayer.forward``.
        """
        stages = list(self.stages)
        starts = [stage.starts for stage in stages]
        following = [stage for stage in stages if stage.follows]
        drops = self.training and self.quantize_dropout and not any(starts)
        learns = drops or any(starts) or bool(following)
        kept = passes.recall(self, learns)
        z = self._vectors(z_e, mask)
        if kept is None:
            used = self._draw_used(z.device) if drops else None
            revives = any(stage.revive_below for stage in following)
            plain = (
                mask is None and used is None and stages[0].metric == "l2" and not (any(starts) or revives)
            )
        else:
            used, plain, _ = kept
            self._draw_again(kept, z.device)
        if plain:  # nothing of a batch is wanted that ``functional.residual_quantize`` doesn't give
            out, parts, batches = self._at_once(z, kept, bool(following))
        else:
            out, parts, batches = self._one_by_one(z, mask, used, kept)
        if kept is None and learns:
            passes.note(self, lambda: _Kept(used, plain, list(map(VQLayer.keep, stages, starts))))
            for q, stage in enumerate(stages):
                if stage in following:
                    stage.learn(*filter(None, batches[q :: len(stages)]))
        quantized = self.projection.leave(out.quantized, mask).to(z_e.dtype)
        output = VQOutput(quantized, out.indices, out.loss)
        return (output, parts) if return_parts else output

    if TYPE_CHECKING:
        __call__ = forward

    @whole
    @torch.no_grad()
    def encode(self, z_e: Tensor, mask: Tensor | None = None) -> Tensor:
        """Indices of all stages, int64 ``(B, *spatial, Q)``; arguments and errors as in ``forward``."""
        residual, indices = self._vectors(z_e, mask), []
        if self.stages[0].metric == "l2":
            books = [self._stage(q).codebook for q in range(self.num_quantizers)]
            found = functional.residual_codes(residual, books, channel_dim=self.projection.dim)
            return found if mask is None else torch.where(mask.unsqueeze(-1), found, -1)
        for q in range(self.num_quantizers):
            stage = self._stage(q)
            indices.append(stage.encode(residual, mask))
            residual = residual - self._looked_up(stage, indices[-1])
        return torch.stack(indices, -1)

    @whole
    def decode(self, indices: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sums of codes of integer ``indices (B, *spatial, q)``: ``(B, D, *spatial)``, or with ``D`` last.

        The first ``q <= Q`` stages are enough for a coarser result, and -1 leaves a stage out. Where ``mask
        (B, *spatial)`` is ``False`` the result is zero.

        Raises:
            TypeError: ``indices`` aren't integers.
            ValueError: an index is out of range, or a shape doesn't fit.
        """
        check_indices("indices", indices, self.num_embeddings, minimum=-1)
        if indices.ndim < 1 or not 1 <= indices.shape[-1] <= self.num_quantizers:
            shape = tuple(indices.shape)
            raise ValueError(
                f"indices has shape {shape}; want (B, *spatial, 1..{self.num_quantizers} stages)"
            )
        check_mask(mask, indices, -1)
        self.projection.check_place(indices, indices.ndim)
        stages = enumerate(indices.long().unbind(-1))
        codes = [self._looked_up(self._stage(q), index) for q, index in stages]
        return self.projection.leave(torch.stack(codes).sum(0), mask)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        shared = "one codebook" if len(self.stages) < self.num_quantizers else "separate codebooks"
        return f"{self.num_quantizers} stages, {shared}, quantize_dropout={self.quantize_dropout}"

    def _draw_used(self, device: torch.device) -> Tensor:
        """How many stages count in this pass: an int64 scalar."""
        noise = ranks.from_first(torch.rand((), device=device))
        return 1 + (noise * self.num_quantizers).long()

    def _draw_again(self, kept: _Kept, device: torch.device) -> None:
        """As ``Codebook.draw_again``, for all stages."""
        if kept.used is not None:
            torch.rand((), device=device)
        for stage, own in zip(self.stages, kept.stages, strict=True):
            stage.draw_again(own)

    def _stage(self, q: int) -> VQLayer:
        return self.stages[q % len(self.stages)]

    def _vectors(self, z_e: Tensor, mask: Tensor | None) -> Tensor:
        """What the first stage is given."""
        z = self.projection.enter(z_e, mask)
        return z.to(torch.promote_types(z.dtype, torch.float32))

    def _at_once(
        self, z: Tensor, kept: _Kept | None, moves: bool
    ) -> tuple[VQOutput, LossParts, list[Batch | None]]:
        """All stages in one pass, which ``moves`` their codes afterwards."""
        moves = moves and kept is None
        # in memory that no step moves; one codebook for all stages isn't copied for each
        held = [stage.held(kept and kept.stages[q]) for q, stage in enumerate(self.stages)]
        books = passes.first(torch.stack(held), moves).expand(self.num_quantizers, -1, -1)
        out = functional.residual_quantize(z, books, channel_dim=self.projection.dim, return_statistics=moves)
        straight = self.gradient == "straight-through"
        quantized = out.quantized
        quantized = quantized if straight else pass_gradient(z, quantized, self.gradient, self.projection.dim)
        parts = LossParts(out.codebook_loss, out.commitment_loss)
        if z.numel() == 0:  # another rank has the vectors
            parts = LossParts(*(part.nan_to_num() for part in parts))
        losses = [self._stage(q).weigh(LossParts(*each)) for q, each in enumerate(zip(*parts, strict=True))]
        batches: list[Batch | None] = [
            Batch(None, None, *each) for each in zip(out.counts, out.sums, strict=True)
        ]
        return VQOutput(quantized, out.indices, torch.stack(losses).sum()), parts, batches

    def _one_by_one(
        self, z: Tensor, mask: Tensor | None, used: Tensor | None, kept: _Kept | None
    ) -> tuple[VQOutput, LossParts, list[Batch | None]]:
        """Stage by stage, of which the first ``used`` count."""
        residual, total, results = z, torch.zeros_like(z, requires_grad=False), []
        for q in range(self.num_quantizers):
            shown = mask
            if used is not None:  # a dropped stage is one whose vectors are all masked
                whole = torch.ones_like(z.movedim(self.projection.dim, -1)[..., 0], dtype=torch.bool)
                shown = (whole if mask is None else mask) & (q < used)
            own = kept and kept.stages[q % len(kept.stages)]
            results.append(self._stage(q).assign(residual, shown, own))
            quantized = results[-1].output.quantized.detach()
            residual, total = residual - quantized, total + quantized
        outputs, parts, batches, _ = zip(*results, strict=True)
        quantized = pass_gradient(z, total, self.gradient, self.projection.dim)
        indices = torch.stack([output.indices for output in outputs], -1)
        output = VQOutput(quantized, indices, torch.stack([output.loss for output in outputs]).sum())
        return output, LossParts(*(torch.stack(values) for values in zip(*parts, strict=True))), list(batches)

    def _looked_up(self, stage: VQLayer, indices: Tensor) -> Tensor:
        """The stage's codes of ``indices``, zero for -1."""
        return stage.look_up(indices, indices >= 0)
