"""What a model has learned, as items: its code vectors, and random codes, decoded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vqfast.checks import check_integer
from vqfast.data.protocol import BATCH
from vqfast.models import Autoencoder, SpeechVQVAE
from vqfast.pipeline.items import decode_items

SIZE = 16  # positions along an axis of a decoded code vector, or one stride where that is more
SAMPLES = 2048  # of a sound, in place of them: enough for a spectrogram


@torch.no_grad()
def decoded_codebook(
    vqvae: Autoencoder, numbers: Tensor, *, level: int = 0, coarser: Sequence[int] | None = None
) -> Tensor:
    """Each code vector as the decoder shows it, where all codes of a grid are the same one.

    Of a quantiser with several stages or heads, the first has the code, and the others add nothing. A model
    of speech draws a sound of each, in the voice of its first speaker.

    Args:
        numbers: the codes to show, int64 ``(n,)``.
        level: whose codes they are.
        coarser: the code that all positions of each coarser level have; None for code 0 of each.

    Returns:
        Floats ``(n, C, *spatial)`` in the model's ``value_range``, on the CPU.

    Raises:
        TypeError, ValueError: there is no such level, or a code is out of range.

    >>> from vqfast.models import VQVAE
    >>> decoded_codebook(VQVAE(hidden_channels=8, num_embeddings=16), torch.arange(16)).shape
    torch.Size([16, 3, 16, 16])
    """
    check_integer("level", level, 0, len(vqvae.strides) - 1)
    coarser = [0] * level if coarser is None else coarser
    if len(coarser) != level:
        raise ValueError(f"coarser has {len(coarser)} codes; want {level}, one for each coarser level")
    shapes = _code_shapes(vqvae, _small(vqvae))[: level + 1]

    def constant(codes: Tensor, shape: Sequence[int]) -> Tensor:
        grid = torch.full((len(codes), *shape), -1)
        first = grid.flatten(1 + vqvae.ndim)[..., 0] if grid.ndim > 1 + vqvae.ndim else grid
        first.copy_(codes.view(-1, *[1] * vqvae.ndim).expand(first.shape))
        return grid

    items = []
    for batch in numbers.split(BATCH):
        codes = [*(torch.full_like(batch, code) for code in coarser), batch]
        grids = [constant(*pair) for pair in zip(codes, shapes, strict=True)]
        items.append(_decoded(vqvae, grids, torch.zeros_like(batch)))
    return torch.cat(items)


@torch.no_grad()
def decoded_at_random(vqvae: Autoencoder, spatial: Sequence[int], num: int, *, seed: int = 0) -> Tensor:
    """Grids of codes that are drawn uniformly, decoded: what the decoder shows without a prior.

    Args:
        spatial: of the items.
        num: how many.
        seed: fixes the codes; in 0..2^32 - 1.

    Returns:
        Floats ``(num, C, *spatial)`` in the model's ``value_range``, on the CPU.

    Raises:
        TypeError, ValueError: an argument is out of range.

    >>> from vqfast.models import VQVAE
    >>> decoded_at_random(VQVAE(hidden_channels=8), (16, 16), 3).shape
    torch.Size([3, 3, 16, 16])
    """
    check_integer("num", num)
    check_integer("seed", seed, 0, 2**32 - 1)
    generator = torch.Generator().manual_seed(seed)
    levels = [
        torch.randint(size, (num, *shape), generator=generator)
        for size, shape in zip(vqvae.codebook_sizes, _code_shapes(vqvae, spatial), strict=True)
    ]
    pieces = zip(*(level.split(BATCH) for level in levels), strict=True)
    return torch.cat([_decoded(vqvae, list(piece), None) for piece in pieces])


def _small(vqvae: Autoencoder) -> list[int]:
    """The sizes of the items that show single code vectors."""
    fixed = vqvae.config.get("image_size")
    wanted = SAMPLES if isinstance(vqvae, SpeechVQVAE) else SIZE
    return [fixed or -(-wanted // vqvae.stride) * vqvae.stride] * vqvae.ndim


def _code_shapes(vqvae: Autoencoder, spatial: Sequence[int]) -> list[torch.Size]:
    """The shape of an item's codes in each level, with stages or heads at its end."""
    parameter = next(vqvae.parameters())
    x = torch.zeros(1, vqvae.in_channels, *spatial, device=parameter.device, dtype=parameter.dtype)
    return [indices.shape[1:] for indices in vqvae.encode_levels(x)]


def _decoded(vqvae: Autoencoder, levels: Sequence[Tensor], speakers: Tensor | None) -> Tensor:
    device = next(vqvae.parameters()).device
    codes = [level.to(device) for level in levels]
    return decode_items(vqvae, codes, speakers, range(len(codes[0]))).float().cpu()
