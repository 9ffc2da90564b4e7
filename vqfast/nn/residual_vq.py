"""Residual vector quantisation: each stage quantises what the stages before it left over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from vqfast import functional
from vqfast.checks import (
    Device,
    check_choice,
    check_device,
    check_flags,
    check_floating,
    check_integer,
    check_placement,
    check_sizes,
    check_tensor,
)
from vqfast.nn import passes, ranks
from vqfast.nn.batch import Batch, residuals_of
from vqfast.nn.codebook import REVIVE_BELOW, Kept
from vqfast.nn.describe import arguments_of, describe
from vqfast.nn.gradient import GRADIENTS, pass_gradient
from vqfast.nn.indices import visible
from vqfast.nn.outputs import LossParts, VQOutput
from vqfast.nn.projection import Projection
from vqfast.nn.quantizer import Quantizer
from vqfast.nn.sharded import whole
from vqfast.nn.vq import VQLayer


class _Kept(NamedTuple):
    """What a forward pass leaves to its recomputation.

    Attributes:
        used: how many stages counted, or ``None`` for all.
        plain: whether all stages ran in one op.
        stages: what ``Codebook.keep`` returns, for each codebook.
    """

    used: Tensor | None
    plain: bool
    stages: list[Kept]


class ResidualVQLayer(Quantizer):
    """Residual vector quantisation, the quantiser of audio codecs.

    Source: Zeghidour et al. 2021, "SoundStream" (arXiv 2107.03312), algorithm 1.

    Stage q quantises the residual of the stages before it. The output is the sum of the stages' code vectors,
    and passes its gradient to ``z_e`` once. ``loss`` is the sum of the stages' losses, each as in ``VQLayer``
    for the residual that the stage is given. The residual is kept in float32 at the least. For checkpoints,
    states of layers with other options, ranks and dtypes see ``VQLayer``.

    Args:
        num_embeddings: K, the number of codes of each stage.
        embedding_dim: D, the channels of ``z_e``.
        num_quantizers: Q, the number of stages.
        beta, decay, eps, metric, learnable: of each stage, as in ``VQLayer``.
        channel_dim: the dimension of the channels: 1 for ``(B, D, *spatial)``, -1 for channels last.
        codebook_dim: the length of the code vectors, by default ``embedding_dim``. With another length linear
            maps stand around all stages together, in ``projection``.
        kmeans_init: as in ``VQLayer``; the first batch, which starts the code vectors, drops no stage.
        revive_below: of each stage, as in ``VQLayer``.
        gradient: ``"straight-through"`` or ``"rotation"``, of the whole sum, as in ``VQLayer``.
        shared_codebook: whether all stages use one codebook, which learns from all of them.
        quantize_dropout: whether in training each batch uses only the first 1 to Q stages (section III-C).
            The number is drawn from torch's generator, the same on all ranks. The other stages give index -1
            and don't learn, but run, so that compilation, CUDA graphs and DistributedDataParallel see one
            graph.
        device, dtype: of all parameters and buffers, as in ``torch.nn``.

    Attributes:
        stages: the ``VQLayer`` of each stage, or the one that all stages share.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Example:
        >>> rvq = vqfast.ResidualVQLayer(1024, 128, 8, decay=0.99)
        >>> quantized, indices, loss = rvq(torch.randn(2, 128, 75))
        >>> quantized.shape, indices.shape, loss.shape
        (torch.Size([2, 128, 75]), torch.Size([2, 75, 8]), torch.Size([]))
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
        kmeans_init: bool = True,
        revive_below: float = REVIVE_BELOW,
        gradient: str = "straight-through",
        learnable: bool = True,
        shared_codebook: bool = False,
        quantize_dropout: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_placement(device, dtype)
        check_sizes(num_embeddings=num_embeddings, embedding_dim=embedding_dim, num_quantizers=num_quantizers)
        check_integer("codebook_dim", codebook_dim, optional=True)
        check_choice("gradient", gradient, GRADIENTS)
        check_flags(shared_codebook=shared_codebook, quantize_dropout=quantize_dropout)
        width = embedding_dim if codebook_dim is None else codebook_dim
        self.num_quantizers, self.num_embeddings = num_quantizers, num_embeddings
        self.embedding_dim, self.codebook_dim, self.channel_dim = embedding_dim, width, channel_dim
        self.shared_codebook, self.quantize_dropout = shared_codebook, quantize_dropout
        self.gradient = gradient
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

    def reset_parameters(self) -> None:
        """Draws the code vectors, and the maps of ``projection``, anew; restarts the moving averages."""
        self.projection.reset_parameters()
        for stage in self.stages:
            stage.reset_parameters()

    @property
    def codebooks(self) -> Tensor:
        """The codebook of each stage, ``(Q, K, D)``."""
        return torch.stack([self._stage(q).codebook for q in range(self.num_quantizers)])

    def set_codebooks(self, codebooks: Tensor) -> None:
        """Replaces the codebooks of all stages, as ``VQLayer.set_codebook`` does.

        Args:
            codebooks: floating point ``(Q, K, D)``, on the device of the layer; for a shared codebook all
                stages' must be equal.

        Raises:
            TypeError: ``codebooks`` isn't a floating-point tensor.
            ValueError: it has another shape, is on another device, or differs between stages that share one.

        Example:
            >>> rvq = vqfast.ResidualVQLayer(16, 4, 2)
            >>> codebooks = torch.randn(2, 16, 4)
            >>> rvq.set_codebooks(codebooks)
            >>> torch.equal(rvq.codebooks, codebooks)
            True
        """
        check_floating(codebooks=codebooks)
        shape = (self.num_quantizers, self.num_embeddings, self.codebook_dim)
        if codebooks.shape != shape:
            raise ValueError(f"codebooks has shape {tuple(codebooks.shape)}; want {shape}")
        check_device("codebooks", codebooks, "the layer", self.stages[0].codebook.device)
        if self.shared_codebook and not torch.equal(codebooks, codebooks[:1].expand_as(codebooks)):
            raise ValueError("codebooks has stages that differ; want equal ones for a shared codebook")
        for stage, codebook in zip(self.stages, codebooks, strict=False):
            stage.set_codebook(codebook)

    def freeze(self, frozen: bool = True) -> None:
        """Stops the code vectors of all stages from learning and reviving; ``frozen=False`` lets them again.

        Raises:
            TypeError: ``frozen`` isn't a bool.
        """
        for stage in self.stages:
            stage.freeze(frozen)

    def quantize(self, z_e: Tensor, mask: Tensor | None) -> tuple[VQOutput, LossParts]:
        """``forward``, with the parts of the loss."""
        stages = list(self.stages)
        starts = [stage.starts for stage in stages]
        following = [stage for stage in stages if stage.follows]
        drops = self.training and self.quantize_dropout and not any(starts)
        learns = drops or any(starts) or bool(following)
        kept = passes.recall(self, learns)
        z = self._vectors(z_e, mask)
        if kept is None:
            used = self._draw_used(z.device) if drops else None
            plain = mask is None and used is None and stages[0].metric == "l2" and not any(starts)
        else:
            used, plain, _ = kept
            self._draw_again(kept, z.device)
        if plain:  # one op gives all that the stages need to learn
            out, parts, batches = self._at_once(z, kept, bool(following))
        else:
            out, parts, batches = self._one_by_one(z, mask, used, kept)
        if kept is None and learns:
            passes.note(self, lambda: _Kept(used, plain, list(map(VQLayer.keep, stages, starts))))
            for q, stage in enumerate(stages):
                if stage in following:
                    stage.learn(*filter(None, batches[q :: len(stages)]))
        quantized = self.projection.leave(out.quantized, mask).to(z_e.dtype)
        return VQOutput(quantized, out.indices, out.loss), parts

    @whole
    @torch.no_grad()
    def encode(self, z_e: Tensor, mask: Tensor | None = None) -> Tensor:
        """Indices of all stages, -1 where masked.

        Args:
            z_e, mask: as in ``forward``.

        Returns:
            int64 ``(B, *spatial, Q)``.

        Raises:
            TypeError, ValueError: as in ``forward``.

        Example:
            >>> vqfast.ResidualVQLayer(16, 4, 3).encode(torch.randn(2, 4, 10)).shape
            torch.Size([2, 10, 3])
        """
        residual, indices = self._vectors(z_e, mask), []
        if self.stages[0].metric == "l2":
            codebooks = [self._stage(q).codebook for q in range(self.num_quantizers)]
            found = functional.residual_codes(residual, codebooks, channel_dim=self.projection.dim)
            return found if mask is None else torch.where(mask.unsqueeze(-1), found, -1)
        for q in range(self.num_quantizers):
            stage = self._stage(q)
            indices.append(stage.encode(residual, mask))
            residual = residual - stage.look_up(indices[-1], mask)
        return torch.stack(indices, -1)

    @whole
    def decode(self, indices: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sums of the stages' code vectors, arranged as ``z_e``; index -1 adds nothing.

        Args:
            indices: integer ``(B, *spatial, q)``, -1 to K - 1. With ``q < Q`` stages the result is coarser.
            mask: bool ``(B, *spatial)``; where it is ``False`` indices count as -1, whatever they are.

        Returns:
            ``(B, D, *spatial)``, or with ``channel_dim=-1`` ``D`` last; zero where all stages have -1.

        Raises:
            TypeError: ``indices`` isn't an integer tensor.
            ValueError: an index is out of range, a shape doesn't fit, or the devices differ.

        Example:
            >>> rvq = vqfast.ResidualVQLayer(16, 4, 3)
            >>> indices = rvq.encode(torch.randn(2, 4, 10))
            >>> rvq.decode(indices).shape, rvq.decode(indices[..., :1]).shape
            (torch.Size([2, 4, 10]), torch.Size([2, 4, 10]))
        """
        indices, shown = visible(indices, mask, self.stages[0].codebook, True)
        self._check_stages(indices)
        self.projection.check_place(indices, indices.ndim)
        parts = []
        for q, index in enumerate(indices.unbind(-1)):
            own = None if shown is None else shown.expand_as(indices)[..., q]
            parts.append(self._stage(q).look_up(index, own))
        return self.projection.leave(torch.stack(parts).sum(0), None if shown is None else shown.any(-1))

    def perplexity(self, indices: Tensor) -> Tensor:
        """How many codes each stage uses, ``(q,)``, of ``indices (..., q)``; see ``functional.perplexity``.

        Example:
            >>> vqfast.ResidualVQLayer(8, 4, 2).perplexity(torch.tensor([[3, 3], [5, -1]]))
            tensor([2., 1.])
        """
        self._check_stages(check_tensor("indices", indices))
        return torch.stack([functional.perplexity(own, self.num_embeddings) for own in indices.unbind(-1)])

    def arguments(self) -> dict[str, Any]:
        """As ``VQLayer.arguments``."""
        mapped = self.projection.project_in is not None
        codebook_dim = self.codebook_dim if mapped else None
        return arguments_of(ResidualVQLayer, self, self.stages[0], codebook_dim=codebook_dim)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return describe(ResidualVQLayer, self.arguments())

    def _check_stages(self, indices: Tensor) -> None:
        if indices.ndim < 1 or not 1 <= indices.shape[-1] <= self.num_quantizers:
            wanted = f"(B, *spatial, 1..{self.num_quantizers} stages)"
            raise ValueError(f"indices has shape {tuple(indices.shape)}; want {wanted}")

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
        """The vectors that the first stage is given."""
        z = self.projection.enter(z_e, mask)
        return z.to(torch.promote_types(z.dtype, torch.float32))

    def _at_once(
        self, z: Tensor, kept: _Kept | None, moves: bool
    ) -> tuple[VQOutput, LossParts, list[Batch | None]]:
        """All stages in one op; ``moves``: whether the codebooks move afterwards."""
        moves = moves and kept is None
        # a copy, as a codebook may move before backward; stages that share one are an expanded view
        held = [stage.held(kept and kept.stages[q]) for q, stage in enumerate(self.stages)]
        codebooks = passes.once(torch.stack(held), moves).expand(self.num_quantizers, -1, -1)
        out = functional.residual_quantize(
            z, codebooks, channel_dim=self.projection.dim, return_statistics=moves
        )
        straight = self.gradient == "straight-through"
        quantized = out.quantized
        quantized = quantized if straight else pass_gradient(z, quantized, self.gradient, self.projection.dim)
        parts = LossParts(out.codebook_loss, out.commitment_loss)
        if z.numel() == 0:  # another rank has the vectors
            parts = LossParts(*(part.nan_to_num() for part in parts))
        losses = [self._stage(q).weigh(LossParts(*each)) for q, each in enumerate(zip(*parts, strict=True))]
        batches: list[Batch | None] = []
        for q, statistics in enumerate(zip(out.counts, out.sums, strict=True)):
            left = residuals_of(z, self.projection.dim, codebooks[:q], out.indices[..., :q])
            batches.append(Batch(left if self._stage(q).revive_below else None, None, *statistics))
        return VQOutput(quantized, out.indices, torch.stack(losses).sum()), parts, batches

    def _one_by_one(
        self, z: Tensor, mask: Tensor | None, used: Tensor | None, kept: _Kept | None
    ) -> tuple[VQOutput, LossParts, list[Batch | None]]:
        """Stage after stage, of which the first ``used`` count."""
        residual, total, results = z, torch.zeros_like(z, requires_grad=False), []
        for q in range(self.num_quantizers):
            shown = mask
            if used is not None:  # all vectors of a dropped stage are masked
                every = torch.ones_like(z.movedim(self.projection.dim, -1)[..., 0], dtype=torch.bool)
                shown = (every if mask is None else mask) & (q < used)
            own = kept and kept.stages[q % len(kept.stages)]
            results.append(self._stage(q).assign(residual, shown, own))
            quantized = results[-1].output.quantized.detach()
            residual, total = residual - quantized, total + quantized
        outputs, parts, batches, _ = zip(*results, strict=True)
        quantized = pass_gradient(z, total, self.gradient, self.projection.dim)
        indices = torch.stack([output.indices for output in outputs], -1)
        output = VQOutput(quantized, indices, torch.stack([output.loss for output in outputs]).sum())
        return output, LossParts(*(torch.stack(values) for values in zip(*parts, strict=True))), list(batches)
