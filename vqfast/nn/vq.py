"""The vector-quantisation layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqfast import functional
from vqfast.nn.codebook import ema_step


class VQOutput(NamedTuple):
    """What a ``VQLayer`` returns.

    ``quantized``: shape, dtype and layout of ``z_e``, with the straight-through gradient. ``indices``: int64,
    the shape of ``z_e`` without its channels. ``loss``: a scalar to add to the reconstruction loss.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor


class VQLayer(nn.Module):
    """Vector quantisation (van den Oord et al. 2017, arXiv 1711.00937, section 3).

    ``loss`` is ``||sg[z_e] - z_q||^2 + beta * ||z_e - sg[z_q]||^2``, means over all elements; with ``decay``
    the codebook follows an exponential moving average instead (appendix A.1) and its term is left out.

    Args:
        num_embeddings: K, the number of codes.
        embedding_dim: D, the channels of ``z_e``.
        beta: weight of the commitment loss.
        decay: the moving average's, in (0, 1); ``None`` learns the codebook by gradients.
        eps: Laplace smoothing of the moving average's counts.
        channel_dim: where the channels stand, 1 for ``(B, D, *spatial)``, -1 for channels last.

    Attributes:
        codebook: ``(K, D)``; a parameter, or with ``decay`` a buffer.

    Raises:
        TypeError: ``num_embeddings`` or ``embedding_dim`` isn't an integer.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        beta: float = 0.25,
        decay: float | None = None,
        eps: float = 1e-5,
        channel_dim: int = 1,
    ) -> None:
        super().__init__()
        for name, value in (("num_embeddings", num_embeddings), ("embedding_dim", embedding_dim)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} is {value!r}; want an integer")
            if value < 1:
                raise ValueError(f"{name} is {value}; want 1 or more")
        if not beta >= 0:
            raise ValueError(f"beta is {beta}; want 0 or more")
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"decay is {decay}; want a number between 0 and 1, or None")
        if eps <= 0:
            raise ValueError(f"eps is {eps}; want a positive number")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.beta, self.decay, self.eps, self.channel_dim = beta, decay, eps, channel_dim
        codebook = torch.empty(num_embeddings, embedding_dim)
        if decay is None:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("ema_counts", torch.empty(num_embeddings))
            self.register_buffer("ema_sums", torch.empty_like(codebook))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Codes uniform within ``1 / K``; the moving average starts as if each had been seen once."""
        self.codebook.uniform_(-1 / self.num_embeddings, 1 / self.num_embeddings)
        self._restart_average()

    @torch.no_grad()
    def set_codebook(self, codebook: Tensor) -> None:
        """Replaces the codes by ``codebook (K, D)`` and restarts the moving average from them.

        Raises:
            ValueError: the shape is another.
        """
        if codebook.shape != self.codebook.shape:
            raise ValueError(f"codebook has shape {tuple(codebook.shape)}; want {tuple(self.codebook.shape)}")
        self.codebook.copy_(codebook)
        self._restart_average()

    def _restart_average(self) -> None:
        if self.decay is not None:
            self.ema_counts.fill_(1)
            self.ema_sums.copy_(self.codebook)

    def _check(self, z_e: Tensor) -> None:
        if isinstance(z_e, Tensor) and z_e.numel() == 0:
            raise ValueError(f"z_e has shape {tuple(z_e.shape)}; want at least one vector")

    def forward(self, z_e: Tensor) -> VQOutput:
        """Quantises ``z_e``; in training mode with ``decay`` also moves the codebook.

        Args:
            z_e: floating point ``(B, D)``, ``(B, D, T)``, ``(B, D, H, W)``, ``(B, D, T, H, W)`` or, with
                ``channel_dim=-1``, the same with ``D`` last.

        Raises:
            TypeError: ``z_e`` isn't a floating-point tensor.
            ValueError: ``z_e`` is empty, or its channels aren't ``embedding_dim``.
        """
        self._check(z_e)
        learns_average = self.decay is not None and self.training
        # the average moves the codes in place, while backward still needs those of this pass
        codebook = self.codebook if self.decay is None else self.codebook.clone()
        out = functional.quantize(z_e, codebook, self.channel_dim, statistics=learns_average)
        loss = self.beta * out.commitment_loss
        if self.decay is None:
            loss = loss + out.codebook_loss
        if learns_average:
            ema_step(
                self.codebook,
                self.ema_counts,
                self.ema_sums,
                out.counts,
                out.sums,
                self.decay,
                self.eps,
            )
        return VQOutput(out.quantized, out.indices, loss)

    @torch.no_grad()
    def encode(self, z_e: Tensor) -> Tensor:
        """Indices of ``z_e``'s vectors, int64; shapes and errors as in ``forward``."""
        self._check(z_e)
        return functional.quantize(z_e, self.codebook, self.channel_dim).indices

    def decode(self, indices: Tensor) -> Tensor:
        """Codes of integer ``indices (B, *spatial)``: ``(B, D, *spatial)``, or with ``D`` last.

        Raises:
            TypeError: ``indices`` aren't integers.
            ValueError: an index is out of range.
        """
        functional.check_codes("indices", indices, self.num_embeddings)
        return self.codebook[indices.long()].movedim(-1, self.channel_dim)

    def perplexity(self, indices: Tensor) -> Tensor:
        """How many codes ``indices`` use, as ``functional.perplexity``."""
        return functional.perplexity(indices, self.num_embeddings)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        rule = "gradient" if self.decay is None else f"decay={self.decay}"
        return f"{self.num_embeddings}, {self.embedding_dim}, beta={self.beta}, {rule}"
