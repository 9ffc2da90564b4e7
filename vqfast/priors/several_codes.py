"""What a prior needs for positions that have several codes, as residual quantisers give them.

A position's codes are drawn one after another. The layers of the prior see all codes of the earlier
positions; its head also sees the codes of its own position that are already drawn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vqfast.priors.layers import Dropout
from vqfast.sampling.builder import ProgramBuilder
from vqfast.sampling.program import Term, codes_of


class CodesEmbedding(nn.Module):
    """The sum of the embeddings of a position's codes, each of which has a table of its own.

    Args:
        num_embeddings: K, the number of codes to choose from.
        channels: C, of the sum.
        num_quantizers: S, the codes of a position.
    """

    def __init__(self, num_embeddings: int, channels: int, num_quantizers: int, **factory: Any) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.Embedding(num_embeddings, channels, **factory) for _ in range(num_quantizers)
        )

    def forward(self, codes: Tensor) -> Tensor:
        """``(B, H, W, S)`` -> ``(B, C, H, W)``."""
        embedded = [table(codes[..., s]) for s, table in enumerate(self.tables)]
        return torch.stack(embedded).sum(0).movedim(-1, 1)

    def lower(self, builder: ProgramBuilder) -> int:
        """The same as a step."""
        tables: Any = self.tables
        terms = [builder.dense(codes_of(s), table.weight.T) for s, table in enumerate(tables)]
        return builder.add(*terms, width=tables[0].embedding_dim)


class CodesHead(nn.Module):
    """The logits of each code of a position, given the position's earlier codes.

    ``logits[s] = output[s](relu(hidden[s](h + embeddings of the position's codes before s)))``.

    Args:
        num_embeddings: K, the number of codes to choose from.
        channels: C, of ``h``.
        head_channels: after the first 1x1 convolution.
        num_quantizers: S, the codes of a position.
        dropout: the share of the hidden values that training sets to zero.
    """

    def __init__(
        self,
        num_embeddings: int,
        channels: int,
        head_channels: int,
        num_quantizers: int,
        dropout: float = 0.0,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.earlier = nn.ModuleList(
            nn.Embedding(num_embeddings, channels, **factory) for _ in range(num_quantizers - 1)
        )
        self.hidden = nn.ModuleList(
            nn.Linear(channels, head_channels, **factory) for _ in range(num_quantizers)
        )
        self.output = nn.ModuleList(
            nn.Linear(head_channels, num_embeddings, **factory) for _ in range(num_quantizers)
        )
        self.dropout = Dropout(dropout)

    def forward(self, h: Tensor, codes: Tensor) -> Tensor:
        """``h (B, C, H, W)`` and codes ``(B, H, W, S)`` -> ``(B, K, H, W, S)``."""
        x, logits = h.movedim(1, -1), []
        for s, (hidden, output) in enumerate(zip(self.hidden, self.output, strict=True)):
            if s > 0:
                x = x + self.earlier[s - 1](codes[..., s - 1])
            logits.append(output(self.dropout(hidden(x).relu())))
        return torch.stack(logits, dim=-1).movedim(-2, 1)

    def lower(self, builder: ProgramBuilder, h: int) -> None:
        """The same as steps; the last ones are the logits of each code."""
        earlier: Any = self.earlier
        tables = [builder.dense(codes_of(s), table.weight.T) for s, table in enumerate(earlier)]
        linears: Any = zip(self.hidden, self.output, strict=True)
        steps = []
        for s, (hidden, output) in enumerate(linears):
            x = h if s == 0 else builder.add(Term(h), *tables[:s], width=hidden.in_features)
            term = builder.dense(x, hidden.weight)
            width = hidden.out_features
            steps.append((builder.add(term, width=width, bias=hidden.bias, activation="relu"), output))
        for step, output in steps:
            builder.add(builder.dense(step, output.weight), width=output.out_features, bias=output.bias)
