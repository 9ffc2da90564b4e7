"""What a VQ-VAE learns in a training: its loss and its figures."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vqfast.data import Source
from vqfast.data.protocol import BATCH
from vqfast.functional import perplexity
from vqfast.models import CONFIGS, VQVAE, HierarchicalOutput, HierarchicalVQVAE, SecondStage, VQVAEOutput
from vqfast.nn import VQLayer
from vqfast.nn.kmeans import kmeans
from vqfast.pipeline.levels import level_name
from vqfast.pipeline.loop import Share, Task
from vqfast.pipeline.options import Training
from vqfast.pipeline.ranks import Ranks

MODELS: dict[str, type[VQVAE | HierarchicalVQVAE]] = {
    **dict.fromkeys(CONFIGS, VQVAE),
    **dict.fromkeys(HierarchicalVQVAE.CONFIGS, HierarchicalVQVAE),
}
# The reconstruction error of an architecture, as its source has it. The others have the squared error over
# the variance of the data, as the Keras example has.
ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ruseckas": F.mse_loss,
    "ruseckas-hierarchical": F.l1_loss,
    "vqvae2": F.mse_loss,
}
REFITS = (0.0, 0.05, 0.15, 0.3)  # shares of the training after which k-means fits the codebook anew


def vqvae_task(
    model: VQVAE | HierarchicalVQVAE | SecondStage,
    dataset: Source,
    training: Training,
    *,
    codebook: str,
    ranks: Ranks,
) -> Task:
    """What a VQ-VAE learns: the error of the reconstruction, and the model's own loss.

    A decoder with a likelihood has the nats of a value in place of the error. The figures are loss, mse (of
    values in 0..1), and for each level perplexity and dead_codes.

    Args:
        codebook: see ``train_vqvae``.
    """
    refitted = codebook == "kmeans" and isinstance(model, VQVAE) and isinstance(model.vq, VQLayer)
    refits = {int(training.num_steps(len(dataset)) * share) for share in REFITS} if refitted else ()
    subset = dataset.batch(range(0, len(dataset), -(-len(dataset) // 1000)))
    error_of = ERRORS.get(model.architecture)
    if error_of is None:
        variance = subset.double().var(correction=0).clamp(min=1e-6).item()

        def error_of(reconstruction: Tensor, x: Tensor) -> Tensor:
            return F.mse_loss(reconstruction, x) / variance

    sizes = model.codebook_sizes
    used = [torch.zeros(size, dtype=torch.bool, device=ranks.device) for size in sizes]

    def metrics(step: int, batch: Tensor) -> dict[str, Tensor]:
        out: VQVAEOutput | HierarchicalOutput
        if step in refits:
            assert isinstance(model, VQVAE)
            _refit(model, subset, training.seed, ranks)
        x = batch.to(ranks.device)
        if isinstance(model, VQVAE) and model.num_mixtures:
            out, nats = model(x, return_nats=True)
            error = nats.mean() / x[0].numel()
        else:
            out = model(x)
            error = error_of(out.reconstruction, x)
        mse = F.mse_loss(out.reconstruction.detach(), x)
        figures = {"loss": error + out.loss, "mse": mse}
        levels = [out.indices] if isinstance(out.indices, Tensor) else out.indices
        for level, (indices, size) in enumerate(zip(levels, sizes, strict=True)):
            used[level].index_fill_(0, indices.flatten(), True)
            figures[level_name("perplexity", level)] = perplexity(indices, size)
        return figures

    def batch(share: Share) -> Tensor:
        return dataset.varied(share.numbers, share.chances)

    names = [level_name("dead_codes", level) for level in range(len(sizes))]
    return Task("VQ-VAE", len(dataset), batch, metrics, dict(zip(names, used, strict=True)))


@torch.no_grad()
def _refit(model: VQVAE, items: Tensor, seed: int, ranks: Ranks) -> None:
    """Fits the codebook to the encoder's output for some items, the same ones on every process."""
    num_embeddings, codes = model.vq.num_embeddings, math.prod(model.code_shape(items.shape[2:]))
    items = items[: max(8, 64 * num_embeddings // codes)]
    model.eval()
    z_e = torch.cat([model.encoder(batch.to(ranks.device)) for batch in torch.split(items, BATCH)])
    model.train()
    if z_e.isfinite().all():  # otherwise the loss isn't finite either, and tells the user
        model.vq.set_codebook(kmeans(z_e.movedim(1, -1).flatten(0, -2), num_embeddings, seed=seed))
