"""How a code is drawn from logits, and the random numbers of the draw.

The noise of a draw depends on the seed, the sample's number, the position and the category alone. So sample
``i`` of seed ``s`` is the same alone, in any batch, on any rank and device, and by any executor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqfast.checks import check_integer, check_number

_WORD = 0xFFFFFFFF  # the lower 32 bits


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """The counter-based random generator Philox 4x32-10.

    Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3".

    Args:
        counter: four int64 tensors of 32-bit words, of shapes that broadcast.
        key: two 32-bit words.

    Returns:
        Four int64 tensors of random 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # 64-bit products: int64 wraps around, but keeps their bits
        c0, c1, c2, c3 = (
            (p1 >> 32 & _WORD) ^ c1 ^ k0,
            p1 & _WORD,
            (p0 >> 32 & _WORD) ^ c3 ^ k1,
            p0 & _WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def gumbel(seed: int, numbers: Tensor, positions: Tensor, num_embeddings: int) -> Tensor:
    """Standard Gumbel noise ``-log(-log u)``, ``u = (word + 1/2) / 2^32``.

    The word of category ``k`` is output ``k % 4`` of Philox for the counter ``(k // 4, position, low word of
    the number, high word of the number)`` and the key ``(low word of the seed, high word of the seed)``.

    Args:
        seed: in ``0..2^64 - 1``.
        numbers: int64 ``(B,)``, the number of each sample of the batch.
        positions: int64 ``(P,)``, positions in raster order. If each has S codes, ``p * S + s`` stands for
            code ``s`` of position ``p``.
        num_embeddings: K, the number of categories.

    Returns:
        float64 ``(B, P, K)``, so that the noise is the same for priors of every dtype.

    >>> noise = gumbel(0, torch.arange(2), torch.arange(3), num_embeddings=4)
    >>> noise.shape
    torch.Size([2, 3, 4])
    >>> alone = gumbel(0, torch.tensor([1]), torch.tensor([2]), num_embeddings=4)
    >>> torch.equal(alone[0, 0], noise[1, 2])
    True
    """
    numbers = numbers.view(-1, 1, 1)
    groups = torch.arange(-(-num_embeddings // 4), device=numbers.device)
    counter = (groups, positions.view(-1, 1), numbers & _WORD, numbers >> 32 & _WORD)
    words = torch.stack(philox(counter, (seed & _WORD, seed >> 32)), dim=-1)
    uniform = (words.flatten(-2)[..., :num_embeddings].double() + 0.5) * 2.0**-32
    return uniform.log_().neg_().log_().neg_()


@dataclass
class Draw:
    """Draws codes from logits: ``argmax(logits / temperature + gumbel noise)``, the Gumbel-max trick.

    The argmax has the softmax's distribution (Gumbel 1954; Maddison et al. 2014, "A* Sampling").

    Attributes:
        seed: in ``0..2^64 - 1``.
        numbers: int64 ``(B,)``, the number of each sample of the batch.
        temperature: divides the logits; 0 takes the most likely code.
        top_k: keeps the k most likely codes and those that tie with the last of them.
        top_p: keeps the fewest codes, the most likely first, whose probabilities add up to ``top_p``.
    """

    seed: int
    numbers: Tensor
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def noise(self, first: int, count: int, num_embeddings: int) -> Tensor:
        """Gumbel noise of ``count`` positions from ``first`` on, float64 ``(B, count, K)``."""
        positions = torch.arange(first, first + count, device=self.numbers.device)
        return gumbel(self.seed, self.numbers, positions, num_embeddings)

    def __call__(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Draws a code for each sample.

        Args:
            logits: floating ``(B, K)``.
            noise: float64 ``(B, K)``.

        Returns:
            int64 ``(B,)``; -1 where a logit is NaN or the highest logit isn't finite.
        """
        logits = logits.double()
        drawable = logits.amax(dim=1).isfinite()
        if self.top_k is not None and self.top_k < logits.shape[1]:
            lowest_kept = logits.topk(self.top_k, dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < lowest_kept, -torch.inf)
        if self.top_p is not None and self.temperature > 0:
            ordered, order = logits.sort(dim=1, descending=True, stable=True)
            p = (ordered / self.temperature).softmax(dim=1)
            hidden = p.cumsum(dim=1) - p >= self.top_p  # more likely codes add up to top_p already
            hidden[:, 0] = False
            logits = logits.masked_fill(torch.zeros_like(hidden).scatter(1, order, hidden), -torch.inf)
        # the scores times the temperature, which has the same argmax and also works for temperature 0
        return torch.add(logits, noise, alpha=self.temperature).argmax(dim=1).where(drawable, -1)


def check_draw(temperature: float, top_k: int | None, top_p: float | None, seed: int) -> None:
    """Checks the options of a draw.

    Raises:
        TypeError: one isn't a number, or not an integer where it should be one.
        ValueError: one is out of range.
    """
    check_number("temperature", temperature, minimum=0, maximum=1e300)  # finite when multiplied with noise
    check_integer("top_k", top_k, optional=True)
    check_number("top_p", top_p, above=0, maximum=1, optional=True)
    check_integer("seed", seed, 0, 2**64 - 1)
