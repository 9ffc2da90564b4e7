"""A training step captured in a CUDA graph, replayed on new data."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from vqfast import ResidualVQLayer, VQLayer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LAYERS = {
    "gradient": lambda: VQLayer(64, 16),
    "EMA": lambda: VQLayer(64, 16, decay=0.99),
    "residual": lambda: ResidualVQLayer(64, 16, 3),
}


def step(layer: nn.Module, z: Tensor) -> tuple[Tensor, ...]:
    quantized, indices, loss = layer(z)
    loss = loss.sum()
    (quantized.square().mean() + loss).backward()
    return quantized.detach(), indices, loss.detach()


@pytest.mark.parametrize("name", LAYERS)
def test_a_captured_step_does_what_an_eager_one_does(name) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().cuda()
    twin = copy.deepcopy(layer)
    old, new = torch.randn(2, 4, 16, 30, device="cuda").unbind()
    z = old.clone().requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(layer, z)
    torch.cuda.current_stream().wait_stream(stream)
    layer.zero_grad(), setattr(z, "grad", None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(layer, z)
    z.detach().copy_(new)
    graph.replay()

    for _ in range(3):
        step(twin, old.clone().requires_grad_())
    twin.zero_grad()
    again = new.clone().requires_grad_()
    eager = step(twin, again)
    assert torch.equal(captured[1], eager[1])
    torch.testing.assert_close((captured[0], captured[2], z.grad), (eager[0], eager[2], again.grad))
    for (key, got), expected in zip(layer.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(got, expected, msg=key)
    for got, expected in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)
