"""The moving average in any dtype, against a plain float32 one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from vqfast.nn import ResidualVQLayer, VQLayer

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
LAYERS = {
    "plain": lambda **options: VQLayer(16, 4, **options),
    "cosine": lambda **options: VQLayer(16, 4, metric="cosine", **options),
    "heads": lambda **options: VQLayer(16, 8, heads=2, separate_codebooks=True, **options),
    "residual": lambda **options: ResidualVQLayer(16, 4, 2, **options),
}


class Plain:
    """van den Oord et al. 2017, appendix A.1, in float32."""

    def __init__(self, codebook: Tensor, decay: float) -> None:
        self.codebook, self.decay = codebook.clone(), decay
        self.counts, self.sums = torch.ones(len(codebook)), codebook.clone()

    def step(self, z: Tensor) -> None:
        one_hot = torch.nn.functional.one_hot(torch.cdist(z, self.codebook).argmin(1), len(self.codebook))
        self.counts = self.decay * self.counts + (1 - self.decay) * one_hot.sum(0)
        self.sums = self.decay * self.sums + (1 - self.decay) * one_hot.float().T @ z
        self.codebook = self.sums / self.counts.unsqueeze(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_300_steps_in_any_dtype_are_those_of_a_plain_float32_layer(dtype) -> None:
    torch.manual_seed(0)
    vq = VQLayer(16, 4, decay=0.99, eps=1e-12).to(dtype)
    vq.set_codebook(torch.randn(16, 4))
    plain = Plain(vq.codebook.float(), 0.99)
    clusters = 3 * torch.randn(16, 4)
    for _ in range(300):
        z = (clusters.repeat(100, 1) + 0.5 * torch.randn(1600, 4)).to(dtype)
        vq(z)
        plain.step(z.float())
    tolerance = 4 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-4
    torch.testing.assert_close(vq.codebook.float(), plain.codebook, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(vq.ema_counts, plain.counts, rtol=4 * tolerance, atol=1)
    assert vq.codebook.dtype == dtype
    assert vq.ema_counts.dtype == vq.ema_sums.dtype == torch.float32


@HALVES
def test_more_vectors_than_float16_can_count(dtype) -> None:
    vq, z = VQLayer(2, 4, decay=0.5).to(dtype), torch.randn(70_000, 4).to(dtype)
    for _ in range(10):
        vq(z)
    assert vq.ema_counts.sum() == pytest.approx(70_000, rel=2e-3)
    torch.testing.assert_close(vq.codebook.float().abs() < 2, torch.ones(2, 4, dtype=torch.bool))


@HALVES
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("masked", [False, True])
def test_narrow_layers_follow_as_float32_ones(name, dtype, masked) -> None:
    torch.manual_seed(0)
    vq = LAYERS[name](decay=0.9)
    for stage in getattr(vq, "stages", [vq]):
        stage.set_codebook(torch.randn(stage.codebook.shape).to(dtype))
    narrow, channels = copy.deepcopy(vq).to(dtype), vq.embedding_dim
    z = vq.decode(torch.randint(16, (500, *vq.encode(torch.zeros(1, channels)).shape[1:])))
    z = (z + 0.01 * torch.randn(500, channels)).detach().to(dtype)  # no rounding decides on its code
    mask = torch.rand(500) < 0.8 if masked else None
    narrow(z, mask)
    vq(z.float(), mask)
    for key, value in vq.state_dict().items():
        got, tolerance = narrow.state_dict()[key], 4 * torch.finfo(dtype).eps
        assert got.dtype == (dtype if key.endswith("codebook") else torch.float32)
        torch.testing.assert_close(got.float(), value, rtol=tolerance, atol=tolerance)


@HALVES
def test_statistics_stay_wide_whatever_converts_or_loads_them(dtype) -> None:
    vq = VQLayer(16, 4, decay=0.9, kmeans_init=True)
    vq(torch.randn(100, 4))
    before = copy.deepcopy(vq.state_dict())
    narrow = [copy.deepcopy(vq).to(dtype), copy.deepcopy(vq).double().to(dtype)]
    narrow += [copy.deepcopy(narrow[0]), pickle.loads(pickle.dumps(narrow[0])), narrow[0].float()]
    narrow.append(VQLayer(16, 4, decay=0.9, kmeans_init=True))
    narrow[-1].load_state_dict({name: value.to(dtype) for name, value in before.items()}, assign=True)
    for one in narrow:
        for name in ("ema_counts", "ema_sums", "initialised"):
            tolerance = 1e-2 if one is narrow[-1] else 0
            torch.testing.assert_close(one.state_dict()[name], before[name], rtol=tolerance, atol=tolerance)
    assert copy.deepcopy(vq).double().ema_sums.dtype == torch.float64
    torch.set_default_dtype(dtype)
    try:
        built = VQLayer(16, 4, decay=0.9)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (built.codebook.dtype, built.ema_sums.dtype) == (dtype, torch.float32)


@HALVES
def test_usage_of_a_gradient_codebook_is_counted_in_float32(dtype) -> None:
    vq = VQLayer(2, 4, revive_below=0.5).to(dtype)
    for _ in range(3):
        vq(torch.zeros(200_000, 4, dtype=dtype))
    assert vq.ema_counts.isfinite().all()
    assert vq.ema_counts.dtype == torch.float32


@HALVES
def test_kmeans_of_narrow_vectors_is_taken_in_float32(dtype) -> None:
    vq = VQLayer(4, 3, kmeans_init=True).to(dtype)
    z = 100 + torch.randn(4, 3).repeat_interleave(5000, 0).to(dtype)
    assert vq(z).loss < 1e-3
