"""vector-quantize-pytorch: VectorQuantize and SimVQ, and so all classes built of them. Checked with 1.32.0.

``VectorQuantize`` decides whether a pass needs the distances to all codes. If not, its ``Codebook`` searches
with vqfast. No call is too small: the library's own search takes a dozen steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.acceleration.replacement import Method, Replacement
from vqfast.acceleration.search import largest_product
from vqfast.functional import nearest_code, quantize
from vqfast.nn.batch import masked_statistics


def _training_reason(module: Any) -> str:
    """Why training steps need the distances to all codes; empty if they don't."""
    options = getattr(module._codebook.gumbel_sample, "keywords", {"stochastic": True})
    reasons = {
        "codes are sampled at random": options.get("stochastic") or options.get("straight_through"),
        "a diversity loss": module.has_codebook_diversity_loss,
        "a cross-entropy loss": module.has_commitment_loss and module.commitment_use_cross_entropy_loss,
    }
    return ", ".join(reason for reason, applies in reasons.items() if applies)


def _note(module: Any) -> str:
    reason = _training_reason(module)
    return f"training keeps the library's code, which computes all distances: {reason}" if reason else ""


def _vector_quantize(
    original: Method, self: Any, x: Tensor, indices: Tensor | None = None, *args: Any, **kwargs: Any
) -> Any:
    """Lets the codebook search with vqfast, unless this call needs all distances.

    A cross-entropy loss against given ``indices`` needs them too.
    """
    self._codebook.vqfast_search = indices is None and not (self.training and _training_reason(self))
    try:
        return original(self, x, indices, *args, **kwargs)
    finally:
        self._codebook.vqfast_search = False


def _codebook(original: Method, self: Any, x: Tensor, *args: Any, **options: Any) -> Any:
    """``(C, B, N, D)`` or ``(B, N, D)`` -> code vectors of that shape, int64 indices, no distances."""
    searches = getattr(self, "vqfast_search", False)
    with torch.autocast("cuda", enabled=False):
        if not searches or options["topk"] not in (None, 1) or options["codebook_transform_fn"] is not None:
            return original(self, x, *args, **options)
        return _search(self, x.float(), **options)


def _search(self: Any, x: Tensor, **options: Any) -> tuple[Tensor, Tensor, None]:
    """``_codebook`` of float32 vectors, with the library's own k-means start, affine maps and averages."""
    flat = x.reshape(self.num_codebooks, -1, x.shape[-1])
    mask = options["mask"]
    if mask is not None:  # heads that share a codebook extend the batch
        mask = mask.repeat_interleave(flat.shape[1] // mask.numel(), 0).flatten().expand(len(flat), -1)
    self.init_embed_(flat, mask=mask)
    if self.affine_param:
        self.update_affine(flat, self.embed, mask=mask)
    codebook = (self.embed if self.learnable_codebook else self.embed.detach()).float()
    if self.vq_bridge is not None:
        codebook = self.vq_bridge(codebook)
    if self.affine_param:
        codebook = (codebook - self.codebook_mean) * _spread(self) + self.batch_mean
    indices = (largest_product if self.use_cosine_sim else nearest_code)(flat, codebook)
    first = torch.arange(len(flat), device=x.device).unsqueeze(1) * self.codebook_size
    quantized = F.embedding(indices + first, codebook.flatten(0, 1))
    is_top_one = options["topk"] == 1  # its results have an extra dimension; update_indices learns from them
    updates = options.get("update_usage", True) and not options["freeze_codebook"] and not is_top_one
    if self.training and updates:
        learning = {name: options[name] for name in ("ema_update_weight", "accum_ema_update", "ema_update")}
        self.update_codebook(flat, indices, mask, **learning)
    shape = (*x.shape[:-1], 1) if is_top_one else x.shape[:-1]
    return quantized.view(*shape, x.shape[-1]), indices.view(shape), None


@torch.no_grad()
def _track(
    original: Method,
    self: Any,
    flatten: Tensor,
    embed_onehot: Tensor,
    mask: Tensor | None = None,
    ema_update_weight: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
    accum_ema_update: bool = False,
) -> None:
    """Moves the averages by vectors ``flatten (C, N, D)`` with indices ``(C, N)``, or one-hot ``(C, N, K)``.

    Both are added up in the same way, so that a step and ``update_indices`` end with the same bits.
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


def _spread(self: Any) -> Any:
    """The vectors' standard deviation over that of the code vectors, ``(C, 1, D)``."""
    return (self.batch_variance.clamp(min=1e-5) / self.codebook_variance.clamp(min=1e-5)).sqrt()


def _rotate(x: Tensor, codes: Tensor) -> Tensor:
    """The library's ``rotate_to`` of ``x`` to ``codes``, both ``(..., D)``, by sums over D."""
    x_length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-6)
    code_length = torch.linalg.vector_norm(codes, dim=-1, keepdim=True)
    u, q = (x / x_length).detach(), codes / code_length.clamp(min=1e-6)
    w = F.normalize(u + q, dim=-1, eps=1e-6)
    turned = x - 2 * (x * w).sum(-1, keepdim=True) * w + 2 * (x * u).sum(-1, keepdim=True) * q
    rotated: Tensor = turned * (code_length / x_length).detach()
    return rotated


def _sim_vq(original: Method, self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(B, ..., D)``, or channels first -> the same, int64 ``(B, ...)``, loss."""
    z = x.movedim(1, -1) if self.channel_first else x
    out = quantize(z, self.codebook, channel_dim=-1)
    quantized = _rotate(z, out.quantized.detach()) if self.rotation_trick else out.quantized
    loss = out.codebook_loss + self.input_to_quantize_commit_loss_weight * out.commitment_loss
    quantized = quantized.movedim(-1, 1) if self.channel_first else quantized
    return quantized, out.indices, loss * self.commitment_weight


def _excluded_stages(residual: Any) -> dict[str, str]:
    """The stages of a ``ResidualVQ`` that need more than the nearest code of one codebook, and why."""
    stages = len(residual.layers)
    if max(residual.beam_size or 1, residual.eval_beam_size or 1) > 1:
        return {f"layers.{q}": "the residual quantiser uses beam search" for q in range(stages)}
    networks = (f"layers.{q}" for q in range(1, stages) if residual.mlps[q - 1] is not None)
    return dict.fromkeys(networks, "a network computes its codebook for each vector")


LIBRARY = "vector_quantize_pytorch.vector_quantize_pytorch"
CODEBOOK = f"{LIBRARY}.Codebook"
REPLACEMENTS = {
    f"{LIBRARY}.VectorQuantize": Replacement(
        {"forward": _vector_quantize},
        lambda module: tuple(module._codebook.embed.shape[1:]),
        needs=(
            *("_codebook", "gumbel_sample", "has_codebook_diversity_loss", "has_commitment_loss"),
            "commitment_use_cross_entropy_loss",
        ),
        part=("_codebook", CODEBOOK),
        note=_note,
    ),
    CODEBOOK: Replacement(
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
    "vector_quantize_pytorch.residual_vq.ResidualVQ": Replacement(
        {},
        lambda module: tuple(module.layers[0]._codebook.embed.shape[1:]),
        needs=("layers", "beam_size", "eval_beam_size", "mlps"),
        excluded=_excluded_stages,
        reported=False,
    ),
    "vector_quantize_pytorch.sim_vq.SimVQ": Replacement(
        {"forward": _sim_vq},
        lambda module: tuple(module.frozen_codebook.shape),
        needs=(
            *("codebook", "channel_first", "rotation_trick", "frozen_codebook", "commitment_weight"),
            "input_to_quantize_commit_loss_weight",
        ),
    ),
}
