"""What the op matrix doesn't ask of the Triton kernels; interpreted, or on a GPU."""

from __future__ import annotations

import pytest
import torch

from vqfast.functional import gate, masked_conv2d, nearest_code, quantize
from vqfast.ops import registry

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    registry.refusal("nearest", "triton", torch.zeros(1, device=DEVICE)) is not None,
    reason="run in the interpreter by test_triton_interpreted.py",
)


@pytest.fixture(autouse=True)
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQFAST_BACKEND", "triton")


@pytest.mark.parametrize("d", [100, 300])
def test_wide_vectors_far_from_zero(assert_nearest, d) -> None:
    x, codebook = torch.randn(150, d) + 100, torch.randn(140, d) + 100
    assert_nearest(nearest_code(x.to(DEVICE), codebook.to(DEVICE)).cpu(), x, codebook)


def test_one_code_so_far_away_that_fp16_saturates(assert_nearest) -> None:
    codebook = torch.randn(300, 7)
    codebook[1] = 1e9  # not in the sample that sets the scale
    x = torch.randn(40, 7)
    x[3] = 1e9
    assert_nearest(nearest_code(x.to(DEVICE), codebook.to(DEVICE)).cpu(), x, codebook)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_codes_that_are_not_finite(bad) -> None:
    """They are nobody's while another is finite, as in the reference."""
    codebook = torch.arange(20.0).view(20, 1).repeat(1, 3)
    codebook[4:6, 1] = bad
    x = torch.full((5, 3), 7.0)
    assert nearest_code(x.to(DEVICE), codebook.to(DEVICE)).tolist() == [7] * 5


@pytest.mark.parametrize("statistics", [False, True])
def test_deterministic_way_gives_the_same_gradients_and_sums(statistics) -> None:
    z_e, codebook = torch.randn(2, 5, 70, device=DEVICE), torch.randn(6, 5, device=DEVICE)

    def run():
        leaves = z_e.clone().requires_grad_(), codebook.clone().requires_grad_()
        out = quantize(*leaves, return_statistics=statistics)
        loss = out.quantized.square().sum() + out.codebook_loss + 0.5 * out.commitment_loss
        return (*out, *torch.autograd.grad(loss, leaves))

    plain = run()
    torch.use_deterministic_algorithms(True)
    try:
        first, again = run(), run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    torch.testing.assert_close(first, plain)


def test_vectors_on_five_strides_are_copied_not_refused(assert_nearest) -> None:
    z_e = torch.randn(3, 4, 3, 4, 6, device=DEVICE)[:, :, ::2, ::2, ::2].transpose(2, 4)
    codebook = torch.randn(9, 4, device=DEVICE)
    out = quantize(z_e, codebook)
    rows = z_e.movedim(1, -1)
    assert_nearest(out.indices.cpu(), rows.cpu(), codebook.cpu())
    assert torch.equal(out.quantized.movedim(1, -1), codebook[out.indices])


def grads(outputs: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return [outputs, *torch.autograd.grad(outputs.square().sum(), inputs)]


def gated(x, weight, extra, residual):
    return masked_conv2d(x, weight, None, mask_type="B", activation="gate", extra=extra, residual=residual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gate_of_more_channels_than_a_block_has(dtype, monkeypatch) -> None:
    """Also more input channels, and more positions than a piece of the weight's gradient has."""
    shapes = (2, 70, 5, 11), (150, 70, 3, 3), (2, 150, 1, 1), (2, 75, 5, 11)
    inputs = [(torch.randn(shape) / 10).to(DEVICE, dtype).requires_grad_() for shape in shapes]
    got = grads(gated(*inputs), inputs)
    again = grads(gated(*inputs), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    monkeypatch.setenv("VQFAST_BACKEND", "reference")
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    for a, b in zip(got, grads(gated(*doubles), doubles), strict=True):
        tolerance = 2e-3 if dtype == torch.float16 or DEVICE == "cuda" else 1e-5  # TF32
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * b.abs().max().item())


def test_gate_alone_of_more_channels_than_a_block_has() -> None:
    x = torch.randn(2, 140, 5, 31, device=DEVICE)
    a, b = x.chunk(2, 1)
    torch.testing.assert_close(gate(x), a.tanh() * b.sigmoid())


def test_more_positions_than_int32_counts_are_an_error(monkeypatch) -> None:
    from vqfast.ops.masked_conv import triton as conv

    monkeypatch.setattr(conv, "MAX_POSITIONS", 15)
    monkeypatch.setattr(conv, "_plans", {})
    with pytest.raises(ValueError, match="x has 16 positions; want 15 or fewer"):
        masked_conv2d(torch.zeros(1, 1, 4, 4, device=DEVICE), torch.zeros(1, 1, 3, 3, device=DEVICE))


@pytest.mark.skipif(not registry.interpreted(), reason="the kernel's parts are replaced in the interpreter")
@pytest.mark.parametrize("near, listed", [((20,), False), ((20, 26), True)])
def test_of_two_groups_the_first_look_decides_and_of_three_the_second(monkeypatch, near, listed) -> None:
    """Distances to the two or three codes differ by less than the bound, and by more than float32 rounds."""
    from vqfast.ops.nearest import triton_kernels

    codebook = 3 * torch.randn(30, 40)
    aside = torch.nn.functional.normalize(torch.randn(40), dim=0)
    away = torch.nn.functional.normalize(torch.randn(50, 40), dim=1)
    away -= (away @ aside)[:, None] * aside
    for number in near:
        codebook[number] = codebook[0] + 0.2 * aside
        aside = -aside
    x = codebook[0] + 5 * away + 0.11 * aside * (-1) ** len(near)
    again, looks = triton_kernels.look_again, []
    monkeypatch.setattr(triton_kernels, "look_again", lambda *arguments: looks.append(1) or again(*arguments))
    found = nearest_code(x, codebook)
    assert bool(looks) == listed
    assert torch.equal(found, torch.cdist(x.double(), codebook.double()).argmin(1))
