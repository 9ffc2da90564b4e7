"""Networks with several resolutions: strided and transposed convolutions, pooling, upsampling."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pixelcnnpp import PlainPixelCNNPP
from vqfast import program_of

K, M = 5, 3


class Sequence(nn.Module):
    """A coarser sequence between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first = nn.Embedding(K, 4), nn.Conv1d(4, 6, 3)
        self.down, self.coarse = nn.Conv1d(6, 6, 3, stride=3), nn.Conv1d(6, 6, 2)
        self.up, self.head = nn.ConvTranspose1d(6, 6, 4, stride=3), nn.Conv1d(6, K, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = F.pad(self.embedding(codes).mT, (3, 0))[..., :-1]
        h = self.first(x).relu()
        c = self.down(F.pad(h, (2, 0))).tanh()
        c = c + F.elu(self.coarse(F.pad(c, (1, 0))))
        return self.head(F.elu(h + self.up(c)[..., : codes.shape[1]]))


class Pooled(nn.Module):
    """The means of the squares above, which every position of a square reads."""

    def __init__(self, shift: int = 1, stride: Any = 2) -> None:
        super().__init__()
        self.shift, self.stride = shift, stride
        self.embedding, self.left = nn.Embedding(K, 4), nn.Conv2d(4, 6, (1, 2))
        self.coarse, self.head = nn.Conv2d(4, 6, (1, 3), padding=(0, 1)), nn.Conv2d(6, K, 1)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes).permute(0, 3, 1, 2)
        pooled = F.avg_pool2d(x, self.stride)
        above = F.pad(pooled, (0, 0, self.shift, 0))[:, :, : pooled.shape[2]]
        up = F.interpolate(F.elu(self.coarse(above)), scale_factor=self.stride)
        return self.head((up + self.left(F.pad(x, (2, 0, 0, 0))[..., :-1])).tanh())


def prior_of(network: nn.Module, shape: tuple[int, ...], scale: float = 2, **options: Any) -> Any:
    with torch.no_grad():
        for parameter in network.double().eval().parameters():
            parameter.mul_(scale)
    return program_of(network, getattr(network, "num_embeddings", K), shape, **options)


@functools.cache
def pixelcnn_pp(colours: int) -> tuple[Any, Tensor]:
    """A prior, and what its own loop draws."""
    torch.manual_seed(0)
    network = PlainPixelCNNPP(4, 1, M, colours, num_embeddings=16)
    prior = prior_of(network, (4, 8), 1.5, num_mixtures=M, num_quantizers=3 if colours == 3 else None)
    return prior, prior.sample(2, (4, 8), seed=3, method="reference")


@pytest.mark.parametrize("colours", [1, 3])
def test_pixelcnn_pp_draws_what_its_own_loop_draws(executor: str, colours: int) -> None:
    prior, expected = pixelcnn_pp(colours)
    assert {step.stride for step in prior.lower()[0].steps} == {1, 2, 4}
    assert torch.equal(prior.sample(2, (4, 8), seed=3, method=executor), expected)
    assert len(expected.unique()) > 8


@pytest.mark.parametrize(
    ("network", "shapes", "strides"),
    [(Sequence, [(12,), (3,), (13,)], {1, 3}), (Pooled, [(4, 6), (2, 2), (6, 4)], {1, 2})],
    ids=["sequence", "pooled"],
)
def test_program_draws_what_the_network_draws(
    executor: str, network: type[nn.Module], shapes: list[tuple[int, ...]], strides: set[int]
) -> None:
    prior = prior_of(network(), shapes[0])
    assert {step.stride for step in prior.lower()[0].steps} == strides
    for shape in shapes:
        for options in ({}, {"temperature": 0.7, "top_k": 2, "seed": 5}):
            expected = prior.sample(3, shape, method="reference", **options)
            assert torch.equal(prior.sample(3, shape, method=executor, **options), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": 0}, r"isn't causal: .*test_strides.py:\d+ reads a later position; its output at"),
        ({"stride": (1, 2)}, r"test_strides.py:\d+: a convolution of stride \(?\[?1, 2"),
    ],
    ids=["not causal", "unequal strides"],
)
def test_network_that_no_program_can_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prior_of(Pooled(**options), (4, 6))
