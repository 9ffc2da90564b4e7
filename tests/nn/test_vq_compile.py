"""One graph for a training step, whatever the options and the batch size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from vqfast.nn import ResidualVQLayer, VQLayer

pytestmark = pytest.mark.slow

LAYERS = {
    "gradient": lambda: VQLayer(9, 6, kmeans_init=False),
    "ema": lambda: VQLayer(9, 6, kmeans_init=False, decay=0.9),
    "revival": lambda: VQLayer(9, 6, kmeans_init=False, revive_below=0.5, gradient="rotation"),
    "cosine": lambda: VQLayer(9, 6, kmeans_init=False, decay=0.9, metric="cosine", revive_below=0.5),
    "shared heads": lambda: VQLayer(9, 6, kmeans_init=False, decay=0.9, heads=2, codebook_dim=4),
    "separate heads": lambda: VQLayer(
        9, 6, kmeans_init=False, heads=2, separate_codebooks=True, revive_below=0.5
    ),
    "residual": lambda: ResidualVQLayer(
        9, 6, 2, kmeans_init=False, decay=0.9, revive_below=0.5, quantize_dropout=True
    ),
    "shared stages": lambda: ResidualVQLayer(
        9, 6, 2, kmeans_init=False, shared_codebook=True, codebook_dim=3
    ),
}


def step(vq, z_e, mask):
    torch.manual_seed(0)
    vq.zero_grad()
    z_e = z_e.clone().requires_grad_()
    out = vq(z_e, mask)
    (out.quantized.square().sum() + out.loss).backward()
    return (*out, z_e.grad, *(p.grad for p in vq.parameters()), *vq.state_dict().values())


@pytest.mark.parametrize(
    "name, masked",
    [
        ("gradient", False),
        ("revival", False),
        ("cosine", True),
        ("shared heads", True),
        ("separate heads", False),
        ("residual", True),
        ("shared stages", False),
    ],
)
def test_training_step_compiles_into_one_graph_for_any_batch_size(name, masked) -> None:
    torch.compiler.reset()
    counters.clear()
    vq = LAYERS[name]().double()
    compiled = copy.deepcopy(vq)
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for batch in (2, 5, 3):
        z_e = torch.randn(batch, 6, 4).double()
        mask = torch.rand(batch, 4) < 0.7 if masked else None
        for value in (z_e, mask) if masked else (z_e,):
            torch._dynamo.mark_dynamic(value, 0)
        expected = step(vq, z_e, mask)
        torch.manual_seed(0)
        found = z_e.clone().requires_grad_()
        torch._dynamo.mark_dynamic(found, 0)
        out = run(found, mask)
        compiled.zero_grad()
        (out.quantized.square().sum() + out.loss).backward()
        grads = (found.grad, *(p.grad for p in compiled.parameters()))
        torch.testing.assert_close((*out, *grads, *compiled.state_dict().values()), expected)
    assert counters["stats"]["unique_graphs"] == 1


def test_unmarked_batch_sizes_compile_twice_at_most() -> None:
    torch.compiler.reset()
    counters.clear()
    run = torch.compile(VQLayer(9, 6, decay=0.9, revive_below=0.5), fullgraph=True, backend="aot_eager")
    for batch in (2, 5, 3, 8):
        run(torch.randn(batch, 6, 4))
    assert counters["stats"]["unique_graphs"] == 2  # the first size, then any


@pytest.mark.parametrize(
    "vq", [VQLayer(9, 6, kmeans_init=True), ResidualVQLayer(9, 6, 2, kmeans_init=True, decay=0.9)]
)
def test_compiled_kmeans_start_is_a_graph_of_its_own_and_happens_once(vq) -> None:
    torch.compiler.reset()
    counters.clear()
    twin, batches = copy.deepcopy(vq), [torch.randn(20, 6) for _ in range(3)]
    run = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for z_e in batches:
        torch.manual_seed(0)
        expected = vq(z_e)
        torch.manual_seed(0)
        torch.testing.assert_close(tuple(run(z_e)), tuple(expected))
    assert counters["stats"]["unique_graphs"] == 2
    for name, value in vq.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["cosine", "separate heads", "residual"])
def test_exported_layer_equals_the_plain_one(name, training) -> None:
    vq = LAYERS[name]().double().train(training)
    z_e, mask = torch.randn(2, 6, 4).double(), torch.rand(2, 4) < 0.7
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(copy.deepcopy(vq), (z_e, mask), dynamic_shapes=(batch, batch)).module()
    for size in (2, 5):
        z_e, mask = torch.randn(size, 6, 4).double(), torch.rand(size, 4) < 0.7
        torch.manual_seed(0)
        expected = vq(z_e, mask)
        torch.manual_seed(0)
        torch.testing.assert_close(tuple(program(z_e, mask)), tuple(expected))


@pytest.mark.parametrize("name", ["separate heads", "shared stages"])
def test_encode_and_decode_compile_into_one_graph(name) -> None:
    torch.compiler.reset()
    vq = LAYERS[name]().eval()
    run = torch.compile(lambda z_e: vq.decode(vq.encode(z_e)), fullgraph=True, backend="aot_eager")
    z_e = torch.randn(3, 6, 4)
    torch.testing.assert_close(run(z_e), vq(z_e).quantized)
