"""Quantisers in plain PyTorch with the conventions of common repositories."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

K, D = 32, 8


class Base(nn.Module):
    """The search as it circulates."""

    def __init__(self, num_embeddings=K, embedding_dim=D, commitment_cost=0.25):
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, embedding_dim)
        self.commitment_cost = commitment_cost

    def search(self, flat: Tensor) -> Tensor:
        codes = self.embedding.weight
        distances = flat.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * flat @ codes.T
        return distances.argmin(1)


class VectorQuantizer(Base):
    """``(loss, quantized, perplexity, encodings)``."""

    def forward(self, inputs):
        x = inputs.permute(0, 2, 3, 1).contiguous()
        indices = self.search(x.view(-1, D)).unsqueeze(1)
        encodings = x.new_zeros(len(indices), K).scatter_(1, indices, 1)
        quantized = (encodings @ self.embedding.weight).view_as(x)
        loss = F.mse_loss(quantized, x.detach())
        loss = loss + self.commitment_cost * F.mse_loss(quantized.detach(), x)
        quantized = x + (quantized - x).detach()
        used = encodings.mean(0)
        perplexity = torch.exp(-torch.sum(used * torch.log(used + 1e-10)))
        return loss, quantized.permute(0, 3, 1, 2).contiguous(), perplexity, encodings


class ChannelsLast(Base):
    """``(quantized, loss)`` of any number of dimensions, the weight at the codebook's term."""

    def forward(self, z):
        z_q = self.embedding(self.search(z.reshape(-1, D))).view_as(z)
        loss = self.commitment_cost * F.mse_loss(z_q, z.detach()) + F.mse_loss(z_q.detach(), z)
        return z + (z_q - z).detach(), loss


class Nested(Base):
    """``(z_q, loss, (perplexity, encodings, indices))``, as VQGAN has it."""

    def forward(self, z, temp=None):
        x = z.permute(0, 2, 3, 1).contiguous()
        indices = self.search(x.view(-1, D))
        z_q = self.embedding(indices).view_as(x)
        loss = ((z_q.detach() - x) ** 2).mean() + self.commitment_cost * ((z_q - x.detach()) ** 2).mean()
        z_q = (x + (z_q - x).detach()).permute(0, 3, 1, 2).contiguous()
        return z_q, loss, (None, None, indices)


class Output(NamedTuple):
    quantized: Tensor
    losses: dict[str, Tensor]
    codes: list[Tensor]


class Named(Base):
    """A named tuple, a dictionary and a list; audio."""

    def forward(self, z):
        x = z.transpose(1, 2)
        indices = self.search(x.reshape(-1, D)).view(x.shape[:-1])
        z_q = self.embedding(indices)
        losses = {"codebook": F.mse_loss(z_q, x.detach()), "commitment": F.mse_loss(x, z_q.detach())}
        return Output((x + (z_q - x).detach()).transpose(1, 2).contiguous(), losses, [indices])


class VQEmbedding(Base):
    """``VQEmbedding``: codes by ``forward``, vectors by ``straight_through``."""

    def forward(self, z):
        x = z.permute(0, 2, 3, 1)
        return self.search(x.reshape(-1, D)).view(x.shape[:-1])

    def straight_through(self, z):
        x = z.permute(0, 2, 3, 1).contiguous()
        codes = self.embedding(self(z))
        passed = x + (codes - x).detach()
        return passed.permute(0, 3, 1, 2).contiguous(), codes.permute(0, 3, 1, 2)


class VectorQuantizerEMA(Base):
    """``VectorQuantizerEMA``; its copies keep the counts smoothed or as they are."""

    keeps_smoothed = True

    def __init__(self, decay=0.9, epsilon=1e-5):
        super().__init__()
        self.decay, self.epsilon = decay, epsilon
        self.register_buffer("cluster_size", torch.zeros(K))
        self.ema_w = nn.Parameter(torch.randn(K, D))

    def forward(self, inputs):
        x = inputs.permute(0, 2, 3, 1).contiguous()
        indices = self.search(x.view(-1, D))
        encodings = F.one_hot(indices, K).float()
        quantized = self.embedding(indices).view_as(x)
        if self.training:
            counts = self.cluster_size * self.decay + (1 - self.decay) * encodings.sum(0)
            smoothed = (counts + self.epsilon) / (counts.sum() + K * self.epsilon) * counts.sum()
            sums = self.ema_w * self.decay + (1 - self.decay) * encodings.T @ x.detach().view(-1, D)
            self.cluster_size = smoothed if self.keeps_smoothed else counts
            self.ema_w = nn.Parameter(sums.detach())
            self.embedding.weight = nn.Parameter((sums / smoothed.unsqueeze(1)).detach())
        loss = self.commitment_cost * F.mse_loss(quantized.detach(), x)
        quantized = x + (quantized - x).detach()
        return loss, quantized.permute(0, 3, 1, 2).contiguous(), indices.view(len(x), -1)


class RawCountsEMA(VectorQuantizerEMA):
    keeps_smoothed = False


class Quantize(nn.Module):
    """Codes ``(D, K)`` in a buffer beside their moving averages, channels last, as VQ-VAE-2 has it."""

    def __init__(self, dim=D, n_embed=K, decay=0.99, eps=1e-5):
        super().__init__()
        self.dim, self.n_embed, self.decay, self.eps = dim, n_embed, decay, eps
        embed = torch.randn(dim, n_embed)
        self.register_buffer("embed", embed)
        self.register_buffer("cluster_size", torch.zeros(n_embed))
        self.register_buffer("embed_avg", embed.clone())

    def forward(self, input):
        flat = input.reshape(-1, self.dim)
        distances = flat.square().sum(1, keepdim=True) - 2 * flat @ self.embed + self.embed.square().sum(0)
        indices = (-distances).max(1)[1]
        one_hot = F.one_hot(indices, self.n_embed).type(flat.dtype)
        indices = indices.view(*input.shape[:-1])
        quantized = self.embed_code(indices)
        if self.training:
            self.cluster_size.data.mul_(self.decay).add_(one_hot.sum(0), alpha=1 - self.decay)
            self.embed_avg.data.mul_(self.decay).add_(flat.T @ one_hot, alpha=1 - self.decay)
            seen = self.cluster_size.sum()
            smoothed = (self.cluster_size + self.eps) / (seen + self.n_embed * self.eps) * seen
            self.embed.data.copy_(self.embed_avg / smoothed.unsqueeze(0))
        loss = (quantized.detach() - input).square().mean()
        return input + (quantized - input).detach(), loss, indices

    def embed_code(self, indices):
        return F.embedding(indices, self.embed.T)


class EmbeddingEMA(nn.Module):
    def __init__(self, decay=0.99, eps=1e-5):
        super().__init__()
        self.decay, self.eps, self.update = decay, eps, True
        weight = torch.randn(K, D)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.cluster_size = nn.Parameter(torch.zeros(K), requires_grad=False)
        self.embed_avg = nn.Parameter(weight.clone(), requires_grad=False)

    def forward(self, indices):
        return F.embedding(indices, self.weight)


class EMAVectorQuantizer(Base):
    """Averages in the child that has the codes, as VQGAN has it."""

    def __init__(self):
        super().__init__()
        self.embedding = EmbeddingEMA()

    def forward(self, z):
        x = z.permute(0, 2, 3, 1)
        flat, table = x.reshape(-1, D), self.embedding
        indices = self.search(flat)
        z_q = table(indices).view(x.shape)
        one_hot = F.one_hot(indices, K).type(z.dtype)
        used = one_hot.mean(0)
        if self.training and table.update:
            table.cluster_size.data.mul_(table.decay).add_(one_hot.sum(0), alpha=1 - table.decay)
            table.embed_avg.data.mul_(table.decay).add_(one_hot.T @ flat, alpha=1 - table.decay)
            seen = table.cluster_size.sum()
            smoothed = (table.cluster_size + table.eps) / (seen + K * table.eps) * seen
            table.weight.data.copy_(table.embed_avg / smoothed.unsqueeze(1))
        loss = self.commitment_cost * F.mse_loss(z_q.detach(), x)
        perplexity = torch.exp(-torch.sum(used * torch.log(used + 1e-10)))
        z_q = (x + (z_q - x).detach()).permute(0, 3, 1, 2)
        return z_q, loss, (perplexity, one_hot, indices)


class OwnCodebook(ChannelsLast):
    """A parameter of its own."""

    turned = False

    def __init__(self):
        nn.Module.__init__(self)
        self.commitment_cost = 0.25
        self.codebook = nn.Parameter(torch.randn(D, K) if self.turned else torch.randn(K, D))

    def embedding(self, indices):
        return F.embedding(indices, self.codebook.T if self.turned else self.codebook)

    def search(self, flat):
        codes = self.codebook.T if self.turned else self.codebook
        return torch.cdist(flat, codes).argmin(1)


class TurnedCodebook(OwnCodebook):
    turned = True
