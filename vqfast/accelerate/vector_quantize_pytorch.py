"""vector-quantize-pytorch: VectorQuantize, SimVQ, and so all that is built of them. Checked with 1.32.0.

``VectorQuantize`` says whether a pass needs the distances to all codes; if not, its ``Codebook`` searches.
No search is too little for ours: theirs take a dozen steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.accelerate.search import largest_product
from vqfast.accelerate.swap import Fast, Swap
from vqfast.functional import nearest_code, quantize
from vqfast.nn.codebook import masked_statistics


def _training_reason(module: nn.Module) -> str:
    """Why training steps need the distances to all codes, if they do."""
    options = getattr(module._codebook.gumbel_sample, "keywords", {"stochastic": True})
    reasons = {
        "codes are sampled": options.get("stochastic") or options.get("straight_through"),
        "a diversity loss": module.has_codebook_diversity_loss,
        "a cross-entropy loss": module.has_commitment_loss and module.commitment_use_cross_entropy_loss,
    }
    return ", ".join(reason for reason, applies in reasons.items() if applies)


def _note(module: nn.Module) -> str:
    reason = _training_reason(module)
    return f"training keeps the full distance matrix: {reason}" if reason else ""


def _vector_quantize(original: Fast, self: nn.Module, x: Tensor, indices=None, *args, **kwargs):
    """Cross-entropy against given ``indices`` needs the distances."""
    self._codebook.vqfast_search = indices is None and not (self.training and _training_reason(self))
    try:
        return original(self, x, indices, *args, **kwargs)
    finally:
        self._codebook.vqfast_search = False


@torch.autocast("cuda", enabled=False)
def _codebook(original: Fast, self: nn.Module, x: Tensor, *args, **options):
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
    self: nn.Module,
    flatten: Tensor,
    embed_onehot: Tensor,
    mask: Tensor | None = None,
    ema_update_weight=None,
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


def _spread(codebook: nn.Module) -> Tensor:
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


def _sim_vq(original: Fast, self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(B, ..., D)``, or channels first -> the same, int64 ``(B, ...)``, loss."""
    z = x.movedim(1, -1) if self.channel_first else x
    out = quantize(z, self.codebook, channel_dim=-1)
    quantized = _rotate(z, out.quantized.detach()) if self.rotation_trick else out.quantized
    loss = out.codebook_loss + self.input_to_quantize_commit_loss_weight * out.commitment_loss
    quantized = quantized.movedim(-1, 1) if self.channel_first else quantized
    return quantized, out.indices, loss * self.commitment_weight


LIBRARY = "vector_quantize_pytorch.vector_quantize_pytorch"
SWAPS = {
    f"{LIBRARY}.VectorQuantize": Swap(
        {"forward": _vector_quantize}, lambda module: tuple(module._codebook.embed.shape[1:]), _note
    ),
    f"{LIBRARY}.Codebook": Swap(
        {"forward": _codebook, "track_cluster_size_and_embed_avg": _track},
        lambda module: tuple(module.embed.shape[1:]),
        reported=False,
    ),
    "vector_quantize_pytorch.sim_vq.SimVQ": Swap(
        {"forward": _sim_vq}, lambda module: tuple(module.frozen_codebook.shape)
    ),
}
