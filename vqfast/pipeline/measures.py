"""Figures of trained models: how data survives the VQ-VAE, how likely codes are under the prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vqfast.data import Dataset
from vqfast.data.protocol import BATCH
from vqfast.functional.ssim import has_ssim, ssim
from vqfast.models import VQVAE, Autoencoder, SecondStage
from vqfast.pipeline.codes import CodeGrids
from vqfast.pipeline.coding import at_once, results
from vqfast.pipeline.levels import AnyPrior, given, level_name, level_of
from vqfast.pipeline.progress import bar
from vqfast.pipeline.ranks import ALONE, Ranks
from vqfast.pipeline.sampling import check_label, classes_of
from vqfast.pipeline.shards import shards
from vqfast.pipeline.video_actions import given_actions, wants_actions


def measure_reconstruction(
    vqvae: Autoencoder, dataset: Dataset, *, levels: int | None = None, ranks: Ranks = ALONE
) -> dict[str, float]:
    """Encodes and decodes data, and compares.

    Args:
        levels: decodes so many levels from the coarsest alone; by default all.

    Returns:
        ``mse`` of values in 0..1; ``psnr`` in dB; ``ssim`` of images of 11 x 11 pixels or more (see
        ``vqfast.functional.ssim``); ``perplexity`` of the coarsest level's codes; ``codes_in_use``, a share
        of its codebook; and those two of each finer level, ``perplexity-1`` and so on.

    >>> from vqfast.data import load_images
    >>> vqvae = VQVAE(hidden_channels=8, in_channels=1)
    >>> list(measure_reconstruction(vqvae, load_images("digits", size=16)))
    ['mse', 'psnr', 'ssim', 'perplexity', 'codes_in_use']
    """
    counts = [torch.zeros(k, dtype=torch.int64, device=ranks.device) for k in vqvae.codebook_sizes]

    with_ssim = has_ssim(dataset.shape)

    def compared(numbers: range) -> Tensor:
        x = dataset.batch(numbers).to(ranks.device)
        grids = vqvae.encode_levels(x)
        outputs = vqvae.decode_levels(grids[:levels]).clamp(0, 1)
        errors = (outputs - x).double().square().flatten(1).mean(1)
        figures = torch.stack([errors, ssim(outputs, x)] if with_ssim else [errors], 1)
        for count, indices in zip(counts, grids, strict=True):
            count.add_(indices.flatten().bincount(minlength=len(count)))
        return figures

    shape, size = (1 + with_ssim,), at_once(vqvae)
    means = for_each(compared, len(dataset), ranks, "reconstruct", shape, size).mean(0).tolist()
    ranks.add_up(counts)
    figures = {"mse": means[0], "psnr": -10 * math.log10(max(means[0], 1e-12))}
    if with_ssim:
        figures["ssim"] = means[1]
    for level, count in enumerate(counts):
        shares = count.double() / count.sum()
        figures[level_name("perplexity", level)] = torch.special.entr(shares).sum().exp().item()
        figures[level_name("codes_in_use", level)] = (count > 0).double().mean().item()
    return figures


def bits_per_code(
    priors: Sequence[AnyPrior], codes: CodeGrids, *, labels: int | None = None, ranks: Ranks = ALONE
) -> Tensor:
    """How likely grids of codes are under the priors of their levels, in bits for each code.

    Args:
        priors: of all levels, or of some.
        labels: one label for all items, in place of their own.

    Returns:
        float64 ``(N, len(priors))``: means over the codes of a level.

    Raises:
        ValueError: a code or ``labels`` is out of range, a prior has classes and the codes have no labels, or
            the codes have fewer levels.

    >>> from vqfast.priors import PixelCNN
    >>> grids = CodeGrids(3, "zeros", lambda numbers: ([torch.zeros(len(numbers), 4, 4).long()], None))
    >>> bits_per_code([PixelCNN(16, channels=8, num_layers=2)], grids).shape
    torch.Size([3, 1])
    """
    check_label(priors, labels)
    needed = 1 + max(map(level_of, priors))

    def bits(numbers: range) -> Tensor:
        grids, own = codes.read(numbers)
        if len(grids) < needed:
            raise ValueError(f"the codes have {len(grids)} levels; want {needed}, as the priors have")
        levels = [indices.to(ranks.device) for indices in grids]
        target = own.to(ranks.device) if labels is None and own is not None else labels
        if target is None and (classes := classes_of(priors)) is not None:
            wanted = f"want labels in 0..{classes - 1} (--label), since the prior has classes"
            raise ValueError(f"the codes have no labels; {wanted}")
        actions = codes.actions(numbers) if wants_actions(priors) else None
        led = None if actions is None else actions.to(ranks.device)
        columns = []
        for prior in priors:
            labels_taken = None if prior.num_classes is None else target
            taken = given(prior, levels) | given_actions(prior, led)
            columns.append(prior.bits_per_code(levels[level_of(prior)], labels_taken, **taken))
        return torch.stack(columns, 1).double()

    size = min(map(at_once, priors))
    return for_each(bits, codes.num, ranks, "bits per code", (len(priors),), size)


def likelihood_of(vqvae: Autoencoder) -> VQVAE | None:
    """The model whose decoder says how likely values are, for ``bits_per_dim``; None where there is none.

    A second stage has the likelihood of its first model, whose codes it decodes.
    """
    if isinstance(vqvae, SecondStage):
        return likelihood_of(vqvae.first)
    return vqvae if isinstance(vqvae, VQVAE) and vqvae.num_mixtures else None


def bits_per_dim(
    vqvae: VQVAE, dataset: Dataset, *, code_bits: Tensor | None = None, ranks: Ranks = ALONE
) -> Tensor:
    """An upper bound on ``-log2 p(x)`` of each item, in bits for each of its values: float64 ``(N,)``.

    Args:
        vqvae: one whose decoder has a likelihood, with ``num_mixtures``.
        dataset: of 8-bit values.
        code_bits: ``(N,)``, the bits of all codes of each item under a prior; None for the uniform prior.

    Raises:
        ValueError: the decoder has no likelihood, or the data aren't multiples of 1/255.

    >>> from vqfast.data import load_images
    >>> digits = load_images("digits", size=8)
    >>> bits_per_dim(VQVAE(hidden_channels=8, in_channels=1, num_mixtures=2), digits).shape
    torch.Size([1797])
    """

    def bits(numbers: range) -> Tensor:
        x = dataset.batch(numbers).to(ranks.device)
        between = (x * 255 - (x * 255).round()).abs().amax().item()
        if between > 1e-3:
            raise ValueError("the data has values between the multiples of 1/255; want 8 bits a value")
        own = None if code_bits is None else code_bits[numbers.start : numbers.stop].to(x)
        return vqvae.bits_per_dim(x, code_bits=own).double()

    return for_each(bits, len(dataset), ranks, "bits per dimension", size=at_once(vqvae))


def for_each(
    work: Callable[[range], Tensor],
    num: int,
    ranks: Ranks,
    label: str,
    shape: tuple[int, ...] = (),
    size: int = BATCH,
) -> Tensor:
    """Figures of each item, float64 ``(num, *shape)`` on every process; they share the work out.

    ``work`` gets ``size`` numbers at a time.
    """
    figures = torch.zeros(num, *shape, dtype=torch.float64, device=ranks.device)
    with bar(ranks, label, num) as progress:
        for numbers in shards(num, ranks):
            first = numbers.start
            for (batch,) in results(lambda batch: [work(batch)], numbers, size):
                figures[first : first + len(batch)] = batch
                first += len(batch)
                progress.update(len(batch) * ranks.world)
            if first != numbers.stop:
                raise ValueError(f"{label}: {first - numbers.start} items came for {len(numbers)} numbers")
    ranks.add_up([figures])
    return figures.cpu()
