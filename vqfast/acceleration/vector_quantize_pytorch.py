"""vector-quantize-pytorch: VectorQuantize, SimVQ, and so all that is built of them. Checked with 1.32.0.

``VectorQuantize`` says whether a pass needs the distances to all codes; if not, its ``Codebook`` searches.
No search is too little for ours: theirs take a dozen steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.acceleration.search import largest_product
from vqfast.acceleration.swap import Fast, Swap
from vqfast.functional import nearest_code, quantize
from vqfast.nn.batch import masked_statistics


def _training_reason(module: Any) -> str:
    """Why training steps need the distances to all codes, if they do."""
    options = getattr(module._codebook.gumbel_sample, "keywords", {"stochastic": True})
    reasons = {
        "codes are sampled": options.get("stochastic") or options.get("straight_through"),
        "a diversity loss": module.has_codebook_diversity_loss,
        "a cross-entropy loss": module.has_commitment_loss and module.commitment_use_cross_entropy_loss,
    }
    return ", ".join(reason for reason, applies in reasons.items() if applies)


def _note(module: Any) -> str:
    reason = _training_reason(module)
    return f"training keeps the full distance matrix: {reason}" if reason else ""


def _vector_quantize(
    original: Fast, self: Any, x: Tensor, indices: Tensor | None = None, *args: Any, **kwargs: Any
) -> Any:
    """Cross-entropy against given ``indices`` needs the distances."""
    self._codebook.vqfast_search = indices is None and not (self.training and _training_reason(self))
    try:
        return original(self, x, indices, *args, **kwargs)
    finally:
        self._codebook.vqfast_search = False


@torch.autocast("cuda", enabled=False)
def _codebook(original: Fast, self: Any, x: Tensor, *args: Any, **options: Any) -> Any:
    """``(C, B, N, D)`` or ``(B, N, D)`` -> codes of that shape, int64 indices, no distances."""
    searched = getattr(self, "vqfast_search", False)
    if not searched or options["topk"] not in (None, 1) or options["codebook_transform_fn"] is not None:
        return original(self, x, *args, **options)
    x = x.float()
    flat = x.reshape(self.num_codebooks, -1, x.shape[-1])
    mask = options["mask"]
    if mask is not None:  # heads that share a codebook stand behind the batch
        mask = mask.repeat_interleave(flat.shape[1] // mask.numel(), 0).flatten().expand(len(flat), -1)
    self.init_embed_(flat, mask=mask)
    if self.affine_param:
        self.update_affine(flat, self.embed, mask=mask)
    codes = (self.embed if self.learnable_codebook else self.embed.detach()).float()
    if self.vq_bridge is not None:
        codes = self.vq_bridge(codes)
    if self.affine_param:
        codes = (codes - self.codebook_mean) * _spread(self) + self.batch_mean
    indices = (largest_product if self.use_cosine_sim else nearest_code)(flat, codes)
    first = torch.arange(len(flat), device=x.device).unsqueeze(1) * self.codebook_size  # of each codebook
    quantized = F.embedding(indices + first, codes.flatten(0, 1))
    best_of_one = options["topk"] == 1  # has a dimension of its own, and learns by update_indices
    updates = options.get("update_usage", True) and not options["freeze_codebook"] and not best_of_one
    if self.training and updates:
        learning = {name: options[name] for name in ("ema_update_weight", "accum_ema_update", "ema_update")}
        self.update_codebook(flat, indices, mask, **learning)
    shape = (*x.shape[:-1], 1) if best_of_one else x.shape[:-1]
    return quantized.view(*shape, x.shape[-1]), indices.view(shape), None


@torch.no_grad()
def _track(
    original: Fast,
    self: Any,
    flatten: Tensor,
    embed_onehot: Tensor,
    mask: Tensor | None = None,
    ema_update_weight: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
    accum_ema_update: bool = False,
) -> None:
    """Moves the averages by ``flatten (C, N, D)`` and one-hot rows ``(C, N, K)`` or indices ``(C, N)``.

    Both are summed in one way, so that a step and ``update_indices`` end with the same bits.
    """
    from vector_quantize_pytorch.vector_quantize_pytorch import accum_grad_, ema_inplace

    if self.affine_param:
        flatten = (flatten - self.batch_mean) / _spread(self) + self.codebook_mean
    indices = embed_onehot.argmax(-1) if embed_onehot.ndim == 3 else embed_onehot
    shown = torch.ones_like(indices[0], dtype=torch.bool) if mask is None else mask[0]
    counts, sums = masked_statistics(flatten.transpose(0, 1), indices.T, shown, self.codebook_size)
    counts, sums = counts.to(flatten.dtype), sums.contiguous()
    self.all_reduce_fn(counts)
    self.all_reduce_fn(sums)
    if callable(ema_update_weight):
        ema_update_weight = ema_update_weight(sums, counts)
    for average, batch in ((self.cluster_size, counts), (self.embed_avg, sums)):
        if accum_ema_update:
            accum_grad_(average, batch)
        else:
            ema_inplace(average, batch, self.decay, ema_update_weight)


def _spread(codebook: Any) -> Tensor:
    """Standard deviation of the vectors over that of the codes."""
    return (codebook.batch_variance.clamp(min=1e-5) / codebook.codebook_variance.clamp(min=1e-5)).sqrt()


def _rotate(x: Tensor, codes: Tensor) -> Tensor:
    """The library's ``rotate_to``, without its products of matrices of one row."""
    length = x.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    reach = codes.norm(dim=-1, keepdim=True)
    u, q = (x / length).detach(), codes / reach.clamp(min=1e-6)
    w = F.normalize(u + q, dim=-1, eps=1e-6)
    turned = x - 2 * (x * w).sum(-1, keepdim=True) * w + 2 * (x * u).sum(-1, keepdim=True) * q
    return turned * (reach / length).detach()


def _sim_vq(original: Fast, self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(B, ..., D)``, or channels first -> the same, int64 ``(B, ...)``, loss."""
    z = x.movedim(1, -1) if self.channel_first else x
    out = quantize(z, self.codebook, channel_dim=-1)
    quantized = _rotate(z, out.quantized.detach()) if self.rotation_trick else out.quantized
    loss = out.codebook_loss + self.input_to_quantize_commit_loss_weight * out.commitment_loss
    quantized = quantized.movedim(-1, 1) if self.channel_first else quantized
    return quantized, out.indices, loss * self.commitment_weight


def _stages_left(residual: Any) -> dict[str, str]:
    """Stages of a ``ResidualVQ`` that are asked for more than one code, or for codes made for each vector."""
    stages = len(residual.layers)
    if max(residual.beam_size or 1, residual.eval_beam_size or 1) > 1:
        return {f"layers.{q}": "the residual quantiser searches by beams" for q in range(stages)}
    networks = (f"layers.{q}" for q in range(1, stages) if residual.mlps[q - 1] is not None)
    return dict.fromkeys(networks, "a network makes its codes for each vector")


LIBRARY = "vector_quantize_pytorch.vector_quantize_pytorch"
CODEBOOK = f"{LIBRARY}.Codebook"
SWAPS = {
    f"{LIBRARY}.VectorQuantize": Swap(
        {"forward": _vector_quantize},
        lambda module: tuple(module._codebook.embed.shape[1:]),
        needs=(
            *("_codebook", "gumbel_sample", "has_codebook_diversity_loss", "has_commitment_loss"),
            "commitment_use_cross_entropy_loss",
        ),
        part=("_codebook", CODEBOOK),
        note=_note,
    ),
    CODEBOOK: Swap(
        {"forward": _codebook, "track_cluster_size_and_embed_avg": _track},
        lambda module: tuple(module.embed.shape[1:]),
        needs=(
            *("topk", "codebook_transform_fn", "mask", "freeze_codebook", "update_usage", "ema_update"),
            *("ema_update_weight", "accum_ema_update", "ema_inplace", "accum_grad_", "all_reduce_fn"),
            *("embed", "embed_avg", "cluster_size", "decay", "num_codebooks", "codebook_size", "vq_bridge"),
            *("init_embed_", "learnable_codebook", "use_cosine_sim", "update_codebook", "update_affine"),
            *("affine_param", "codebook_mean", "codebook_variance", "batch_mean", "batch_variance"),
        ),
        reported=False,
    ),
    "vector_quantize_pytorch.residual_vq.ResidualVQ": Swap(
        {},
        lambda module: tuple(module.layers[0]._codebook.embed.shape[1:]),
        needs=("layers", "beam_size", "eval_beam_size", "mlps"),
        leaves=_stages_left,
        reported=False,
    ),
    "vector_quantize_pytorch.sim_vq.SimVQ": Swap(
        {"forward": _sim_vq},
        lambda module: tuple(module.frozen_codebook.shape),
        needs=(
            *("codebook", "channel_first", "rotation_trick", "frozen_codebook", "commitment_weight"),
            "input_to_quantize_commit_loss_weight",
        ),
    ),
}
