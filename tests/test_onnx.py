"""Layers, VQVAEs and priors exported to ONNX: onnxruntime against PyTorch, in batches of other sizes."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vqfast import VQVAE, PixelCNN, ResidualPixelCNN, ResidualVQLayer, VQLayer, WaveNet

runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx", reason="onnx is not installed")

K, D = 32, 20  # D: more than one block of channels, the last of them not full
GRID, LAST, SERIES = (3, D, 3, 4), (3, 3, 4, D), (3, D, 7)
LAYERS = {
    "plain": (lambda: VQLayer(K, D), GRID),
    "channels last": (lambda: VQLayer(K, D, channel_dim=-1), LAST),
    "vectors": (lambda: VQLayer(K, D), (3, D)),
    "cosine": (lambda: VQLayer(K, D, metric="cosine"), GRID),
    "heads": (lambda: VQLayer(K, D, heads=2), GRID),
    "separate codebooks": (lambda: VQLayer(K, D, heads=2, separate_codebooks=True), GRID),
    "codebook_dim": (lambda: VQLayer(K, D, codebook_dim=4), GRID),
    "moving average": (lambda: VQLayer(K, D, decay=0.9, revive_below=0.1), GRID),
    "rotation": (lambda: VQLayer(K, D, gradient="rotation"), GRID),
    "residual": (lambda: ResidualVQLayer(K, D, 3), SERIES),
    "residual, one codebook": (lambda: ResidualVQLayer(K, D, 3, shared_codebook=True), SERIES),
    "residual, cosine": (lambda: ResidualVQLayer(K, D, 3, metric="cosine", codebook_dim=4), SERIES),
    "residual, last": (lambda: ResidualVQLayer(K, D, 3, decay=0.9, channel_dim=-1), (3, 7, D)),
}


class Calls(nn.Module):
    """All that ``call(module, *inputs)`` returns, as one tuple."""

    def __init__(self, module: nn.Module, call: Callable) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.call(self.module, x))


def layer_calls(layer: nn.Module, z: Tensor) -> list[Tensor]:
    """``forward``, ``encode`` and ``decode``."""
    indices = layer.encode(z)
    return [*layer(z), indices, layer.decode(indices)]


def randomised(module: nn.Module) -> nn.Module:
    """With codes of the inputs' size, so that the right ones are far from all alike."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if "codebook" in name:
                tensor.normal_()
    return module.eval()


def session(model: nn.Module, x: Tensor, path: str, dynamo: bool) -> object:
    """``model`` in onnxruntime, for batches of any size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own, of what they will change
        if dynamo:
            shapes = {"x": {0: torch.export.Dim("batch", min=1, max=1024)}}
            torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
        else:
            axes = {"x": {0: "batch"}}
            torch.onnx.export(model, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=axes)
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


def same(model: nn.Module, batches: list[Tensor], path: str, dynamo: bool) -> None:
    """It returns in onnxruntime what it does here: integers equal, others up to rounding."""
    exported = session(model, batches[0], path, dynamo)
    for x in batches:
        ours = exported.run(None, {exported.get_inputs()[0].name: x.numpy()})
        expected = [tensor.detach().numpy() for tensor in model(x)]
        assert [(each.dtype, each.shape) for each in ours] == [(each.dtype, each.shape) for each in expected]
        for got, want in zip(ours, expected, strict=True):
            if want.dtype.kind == "i":
                assert np.array_equal(got, want)
            else:
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def batches(shape: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape), torch.randn(8, *shape[1:]), torch.randn(1, *shape[1:])]


@pytest.mark.parametrize("name", LAYERS)
def test_layers_by_tracing(name, tmp_path):
    build, shape = LAYERS[name]
    same(
        Calls(randomised(build()), layer_calls).eval(), batches(shape), str(tmp_path / "m.onnx"), dynamo=False
    )


class Several(nn.Module):
    """Layers that take inputs of one shape, so that they are exported at once."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(randomised(LAYERS[name][0]()) for name in names)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(each for layer in self.layers for each in layer_calls(layer, x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [["cosine", "separate codebooks", "codebook_dim"], ["residual, one codebook"]], ids=str
)
def test_layers_by_dynamo(names, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    same(Several(names).eval(), batches(LAYERS[names[0]][1]), str(tmp_path / "m.onnx"), dynamo=True)


@pytest.mark.parametrize("dynamo", [True, False])
def test_indices_are_exact(dynamo, tmp_path):
    """Far from zero, with ties, and of vectors that aren't finite."""
    if dynamo:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    layer = VQLayer(64, D)
    codes = 1000 + torch.randn(32, D)
    layer.set_codebook(torch.cat([codes, codes]))  # each twice
    layer.codebook.data[40:] = torch.randint(0, 2, (24, D)).float()
    layer.codebook.data[5, 3], layer.codebook.data[6, 0] = torch.nan, torch.inf  # nobody's
    z = 1000 + torch.randn(200, D)
    z[100:] = torch.randint(0, 2, (100, D)).float()  # as far from many
    z[7, 3], z[8, 0] = torch.nan, torch.inf
    exported = session(
        Calls(layer.eval(), lambda vq, x: [vq.encode(x)]).eval(), z, str(tmp_path / "m"), dynamo
    )
    (indices,) = exported.run(None, {"x": z.numpy()})
    distances = (z.double().unsqueeze(1) - layer.codebook.double()).square().sum(-1)
    distances[:, 5:7] = torch.inf
    truth = distances.argmin(-1)
    truth[7:9] = 0
    assert np.array_equal(indices, truth.detach())


MODELS = {
    "paper": lambda: VQVAE(hidden_channels=8, num_embeddings=K, embedding_dim=4),
    "keras": lambda: VQVAE("keras", hidden_channels=8, num_embeddings=K, embedding_dim=4),
    "ruseckas": lambda: VQVAE(
        "ruseckas", hidden_channels=8, num_downsamplings=2, num_embeddings=K, embedding_dim=4, decay=0.9
    ),
}


def vqvae_calls(model: VQVAE, x: Tensor) -> list[Tensor]:
    codes = model.encode(x)
    return [*model(x), codes, model.decode(codes)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dynamo"), [("paper", True), *((name, False) for name in MODELS)])
def test_vqvae(name, dynamo, tmp_path):
    if dynamo:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = Calls(randomised(MODELS[name]()), vqvae_calls).eval()
    same(model, [torch.randn(batch, 3, 16, 16) for batch in (2, 5)], str(tmp_path / "m.onnx"), dynamo)


PRIORS = {
    "PixelCNN": (lambda: PixelCNN(K, channels=8, num_layers=2, head_channels=8), (2, 5, 6)),
    "ResidualPixelCNN": (lambda: ResidualPixelCNN(K, channels=8, num_residual_blocks=1), (2, 5, 6)),
    "WaveNet": (lambda: WaveNet(K, channels=8, num_layers=4, dilation_cycle=2), (2, 30)),
}


@pytest.mark.parametrize("name", PRIORS)
def test_priors(name, tmp_path):
    build, shape = PRIORS[name]
    codes = [torch.randint(K, (batch, *shape[1:])) for batch in (2, 5)]
    same(Calls(build(), lambda prior, x: [prior(x)]).eval(), codes, str(tmp_path / "m.onnx"), dynamo=False)
