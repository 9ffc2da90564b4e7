from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

import vqfast
from tests.ops.convolutions import arguments, truth
from vqfast.functional import (
    gate,
    masked_conv1d,
    masked_conv2d,
    nearest_code,
    nearest_unit_code,
    perplexity,
    projected_codes,
    quantize,
    residual_codes,
    residual_quantize,
    unit,
)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


IMAGE, KERNEL = zeros(1, 2, 5, 5), zeros(4, 2, 3, 3)
REFUSALS = [
    (nearest_code, ([[0.0]], zeros(2, 1)), TypeError, "z_e is a list"),
    (nearest_code, (zeros(3, 1), None), TypeError, "codebook is a NoneType"),
    (nearest_code, (zeros(3, 1).long(), zeros(2, 1)), TypeError, "z_e has dtype torch.int64"),
    (nearest_code, (zeros(3, 1), zeros(2, 1).to(torch.complex64)), TypeError, "codebook has dtype"),
    (nearest_code, (zeros(3), zeros(2, 3)), ValueError, "z_e has shape (3,)"),
    (nearest_code, (zeros(2, 3), zeros(3)), ValueError, "codebook has shape (3,); want (..., K, D)"),
    (
        nearest_code,
        (zeros(2, 3), zeros(2, 4)),
        ValueError,
        "z_e has 3 channels at dimension -1 of (2, 3); want embedding_dim = 4",
    ),
    (nearest_code, (zeros(2, 3), zeros(0, 3)), ValueError, "codebook has shape (0, 3)"),
    (nearest_code, (zeros(2, 0), zeros(2, 0)), ValueError, "codebook has shape (2, 0)"),
    (
        nearest_code,
        (zeros(2, 5, 3), zeros(3, 5, 3)),
        ValueError,
        "z_e has shape (2, 5, 3) and codebook (3, 5, 3); want leading",
    ),
    (nearest_code, (zeros(2, 3), zeros(4, 2), {"channel_dim": 2}), ValueError, "channels at 2"),
    (nearest_code, (zeros(2, 3), zeros(4, 2), {"channel_dim": True}), TypeError, "channel_dim is True"),
    (
        nearest_unit_code,
        (zeros(2, 3), zeros(1, 4, 3)),
        ValueError,
        "codebook has shape (1, 4, 3); want (K, D)",
    ),
    (unit, (zeros(3),), ValueError, "z_e has shape (3,); want two dimensions or more"),
    (unit, (zeros(2, 3), {"channel_dim": 2}), ValueError, "channels at 2"),
    (quantize, (zeros(2, 4).long(), zeros(3, 4)), TypeError, "z_e has dtype torch.int64"),
    (quantize, (zeros(2, 4), zeros(3, 4).long()), TypeError, "codebook has dtype torch.int64"),
    (quantize, (zeros(2, 4), [1.0]), TypeError, "codebook is a list"),
    (quantize, (zeros(2, 4), zeros(4)), ValueError, "codebook has shape (4,)"),
    (quantize, (zeros(2, 4), zeros(0, 4)), ValueError, "codebook has shape (0, 4)"),
    (quantize, (zeros(2, 0), zeros(3, 0)), ValueError, "codebook has shape (3, 0)"),
    (quantize, (zeros(4), zeros(3, 4)), ValueError, "z_e has shape (4,)"),
    (quantize, (zeros(2, 4), zeros(3, 4), {"channel_dim": 2}), ValueError, "channels at 2"),
    (quantize, (zeros(2, 4), zeros(3, 4), {"channel_dim": -3}), ValueError, "channels at -3"),
    (quantize, (zeros(2, 5), zeros(3, 4)), ValueError, "z_e has 5 channels at dimension 1 of (2, 5)"),
    (masked_conv2d, (IMAGE.long(), KERNEL), TypeError, "x has dtype torch.int64"),
    (masked_conv2d, (IMAGE, [1]), TypeError, "weight is a list"),
    (masked_conv2d, (IMAGE, KERNEL, zeros(4).int()), TypeError, "bias has dtype torch.int32"),
    (masked_conv2d, (IMAGE, KERNEL, [0.0] * 4), TypeError, "bias is a list"),
    (masked_conv2d, (IMAGE, KERNEL, zeros(3)), ValueError, "bias has shape (3,); want (4,)"),
    (masked_conv2d, (IMAGE, KERNEL, {"mask_type": "a"}), ValueError, "mask_type is 'a'"),
    (masked_conv2d, (IMAGE, KERNEL, {"stack": "up"}), ValueError, "stack is 'up'"),
    (masked_conv2d, (IMAGE, KERNEL, {"dilation": 0}), ValueError, "dilation is 0"),
    (masked_conv2d, (IMAGE[0], KERNEL), ValueError, "x has shape (2, 5, 5)"),
    (masked_conv2d, (IMAGE, zeros(4, 3, 3, 3)), ValueError, "weight (4, 3, 3, 3)"),
    (masked_conv2d, (IMAGE, KERNEL[..., :2]), ValueError, "3x2 kernel; want a full one"),
    (masked_conv2d, (IMAGE, KERNEL[..., :0], {"stack": "horizontal"}), ValueError, "3x0 kernel"),
    (
        masked_conv2d,
        (IMAGE, KERNEL, {"stack": "horizontal"}),
        ValueError,
        "3x3 kernel; want a horizontal one",
    ),
    (masked_conv2d, (zeros(1, 2, 0, 5), KERNEL), ValueError, "x has shape (1, 2, 0, 5)"),
    (masked_conv2d, (IMAGE, KERNEL.double()), ValueError, "['torch.float32', 'torch.float64']; want one"),
    (masked_conv2d, (IMAGE, KERNEL, {"activation": "tanh"}), ValueError, "activation is 'tanh'"),
    (
        masked_conv2d,
        (IMAGE, KERNEL[:3], {"activation": "gate"}),
        ValueError,
        "activation is 'gate' of 3 channels; want an even",
    ),
    (
        masked_conv2d,
        (IMAGE, KERNEL, {"extra": zeros(1, 4, 5, 1)}),
        ValueError,
        "extra has shape (1, 4, 5, 1); want (1, 4, 1, 1) or (1, 4, 5, 5)",
    ),
    (
        masked_conv2d,
        (IMAGE, KERNEL, {"activation": "gate", "residual": zeros(1, 4, 5, 5)}),
        ValueError,
        "residual has shape (1, 4, 5, 5); want (1, 2, 5, 5)",
    ),
    (
        masked_conv1d,
        (zeros(1, 2, 5), zeros(4, 2, 3), {"extra": zeros(1, 4)}),
        ValueError,
        "extra has shape (1, 4); want three",
    ),
    (gate, (zeros(1, 3, 2, 2),), ValueError, "activation is 'gate' of 3 channels; want an even"),
    (gate, (zeros(1, 4, 2),), ValueError, "x has shape (1, 4, 2)"),
    (gate, (zeros(1, 4, 2, 2), {"extra": zeros(1, 2, 2, 2)}), ValueError, "extra has shape (1, 2, 2, 2)"),
    (gate, (zeros(1, 4, 2, 2).int(),), TypeError, "x has dtype torch.int32"),
    (masked_conv1d, (zeros(1, 2, 5).long(), zeros(4, 2, 3)), TypeError, "x has dtype torch.int64"),
    (masked_conv1d, (zeros(1, 2, 5), None), TypeError, "weight is a NoneType"),
    (masked_conv1d, (zeros(2, 5), zeros(4, 2, 3)), ValueError, "x has shape (2, 5)"),
    (masked_conv1d, (zeros(1, 2, 5), KERNEL), ValueError, "weight (4, 2, 3, 3)"),
    (masked_conv1d, (zeros(1, 2, 5), zeros(4, 2, 3), {"stack": "vertical"}), ValueError, "vertical"),
    (perplexity, (torch.tensor([0.5]), 4), TypeError, "indices has dtype torch.float32"),
    (perplexity, ([0], 4), TypeError, "indices is a list"),
    (perplexity, (torch.tensor([4]), 4), ValueError, "indices has values 4..4; want -1..3"),
    (perplexity, (torch.tensor([-2, 3]), 4), ValueError, "indices has values -2..3; want -1..3"),
]


@pytest.mark.parametrize("function, arguments, error, message", REFUSALS)
def test_bad_arguments_are_named_at_the_door(function, arguments, error, message) -> None:
    *tensors, last = arguments
    tensors, options = (tensors, last) if isinstance(last, dict) else (arguments, {})
    with pytest.raises(error, match=re.escape(message)):
        function(*tensors, **options)


def test_perplexity_of_no_indices_is_nan() -> None:
    assert perplexity(torch.zeros(0, dtype=torch.int64), 4).isnan()


@pytest.mark.slow
def test_import_brings_no_optional_package_that_torch_does_not() -> None:
    program = """if True:
        import sys, torch
        before = set(sys.modules)
        import vqfast
        print(*{name.partition(".")[0] for name in set(sys.modules) - before})"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    brought = set(run.stdout.split())
    assert "vqfast" in brought
    assert not brought & {"triton", "matplotlib", "sklearn", "PIL", "safetensors", "tqdm"}


def cosines(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return torch.cosine_similarity(x.double().unsqueeze(-2), codebook.double().unsqueeze(-3), dim=-1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lead", [((), ()), ((3,), ()), ((), (3,)), ((2, 1), (3,))])
def test_cosine_metric_finds_the_smallest_angle(lead, dtype) -> None:
    x, codebook = torch.randn(*lead[0], 40, 6).to(dtype), torch.randn(*lead[1], 9, 6).to(dtype)
    scaled = x * (4.0 ** torch.randint(-3, 4, (40, 1))).to(dtype)  # lengths don't count
    indices, distance = nearest_code(scaled, codebook, metric="cosine", return_distances=True)
    want = cosines(x, codebook).max(-1)
    assert torch.equal(indices, want.indices)
    torch.testing.assert_close(distance, (1 - want.values).to(distance.dtype), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_cosine_metric_at_any_magnitude_and_with_codes_of_nearly_equal_direction(scale) -> None:
    x, codebook = torch.randn(200, 5), torch.randn(1, 5) + 1e-3 * torch.randn(50, 5)
    want = cosines(x, codebook).argmax(-1)
    assert (nearest_code(x * scale, codebook, metric="cosine") == want).float().mean() > 0.99
    codebook = codebook * 4.0 ** torch.randint(-3, 4, (50, 1))
    assert torch.equal(nearest_code(x, codebook, metric="cosine"), want)


def test_zero_vectors_have_no_angle() -> None:
    codebook = torch.tensor([[0.0, 0], [-1, 0], [0, -2]])
    x = torch.tensor([[3.0, 1], [0, 0], [-1, -3]])  # the first is behind all codes, the second nowhere
    indices, distance = nearest_code(x, codebook, metric="cosine", return_distances=True)
    assert indices.tolist() == [2, 0, 2]
    torch.testing.assert_close(distance, torch.tensor([1 + 10**-0.5, 1, 1 - 3 * 10**-0.5]))
    indices, distance = nearest_code(x, zeros(4, 2), metric="cosine", return_distances=True)
    assert (indices.tolist(), distance.tolist()) == ([0] * 3, [1] * 3)


@pytest.mark.parametrize("offset", [0, 1000])
def test_distance_is_euclidean_and_exact_far_from_zero(offset) -> None:
    x, codebook = torch.randn(3, 40, 6) + offset, torch.randn(9, 6) + offset
    indices, distance = nearest_code(x, codebook, return_distances=True)
    differences = (x.double().unsqueeze(-2) - codebook.double()).square().sum(-1).sqrt()
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, differences.min(-1).values.float(), rtol=1e-7, atol=0)
    assert torch.equal(indices, differences.argmin(-1))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_distance_is_nan_for_a_bad_vector_and_differentiable_for_the_others(metric) -> None:
    x, codebook = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    x[1, 2], x[2, 0] = torch.inf, torch.nan
    indices, distance = nearest_code(x, codebook, metric=metric, return_distances=True)
    assert indices[1:3].tolist() == [0, 0]
    assert distance.isnan().tolist() == [False, True, True, False]
    good = x[::3].requires_grad_(), codebook.requires_grad_()
    torch.autograd.gradcheck(lambda x, e: nearest_code(x, e, metric=metric, return_distances=True)[1], good)


def test_unknown_metric_is_named() -> None:
    with pytest.raises(ValueError, match="metric is 'dot'; want 'l2' or 'cosine'"):
        nearest_code(zeros(2, 3), zeros(4, 3), metric="dot")
    with pytest.raises(ValueError, match="metric is 'dot'; want 'l2' or 'cosine'"):
        projected_codes(X[..., None], [CODES], MAPS, metric="dot")


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_channels_may_stand_anywhere(metric) -> None:
    last, codebook = torch.randn(2, 5, 7, 3), torch.randn(9, 3)
    want = nearest_code(last, codebook, metric=metric, return_distances=True)
    for dim in (0, 1, -2):
        given = last.movedim(-1, dim).contiguous()
        got = nearest_code(given, codebook, metric=metric, channel_dim=dim, return_distances=True)
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    first = last.movedim(-1, 1)
    assert torch.equal(nearest_unit_code(first, codebook, channel_dim=1), nearest_unit_code(last, codebook))
    torch.testing.assert_close(unit(first, channel_dim=1).movedim(1, -1), unit(last))


X, CODES, GRID = torch.randn(2, 3), torch.randn(4, 3), torch.randn(1, 2, 5, 5)
MAPS = [[torch.zeros(3, 3), torch.zeros(3), torch.zeros(3, 3), torch.zeros(3)]]
CALLS = {
    unit: {"z_e": X},
    nearest_code: {"z_e": X, "codebook": CODES},
    nearest_unit_code: {"z_e": X, "codebook": CODES},
    quantize: {"z_e": X, "codebook": CODES},
    residual_quantize: {"z_e": X, "codebooks": CODES[None]},
    residual_codes: {"z_e": X, "codebooks": [CODES]},
    projected_codes: {"z_e": X[..., None], "codebooks": [CODES], "maps": MAPS},
    gate: {"x": GRID, "extra": GRID},
    masked_conv2d: {"x": GRID, "weight": KERNEL, "bias": zeros(4), "extra": zeros(1, 4, 5, 5)}
    | {"residual": zeros(1, 4, 5, 5)},
    masked_conv1d: {"x": GRID[0], "weight": KERNEL[:, 0], "bias": zeros(4), "extra": zeros(2, 4, 5)},
    vqfast.VQLayer(4, 3): {"z_e": X},
    vqfast.ResidualVQLayer(4, 3, 2).encode: {"z_e": X},
}
UNFIT = {
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "sparse": lambda t: t.to_sparse(),
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "jagged": lambda t: torch.nested.nested_tensor([t, t], layout=torch.jagged),
    "mkldnn": lambda t: t.to_mkldnn(),
}


def replaced(value, change):
    """``value`` with its last tensor changed, in lists too."""
    return [*value[:-1], replaced(value[-1], change)] if isinstance(value, list) else change(value)


PLACES = [(call, name) for call, arguments in CALLS.items() for name in arguments]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("call, name", PLACES)
def test_tensors_of_other_kinds_are_named_at_the_door(call, name, kind) -> None:
    arguments = CALLS[call] | {name: replaced(CALLS[call][name], UNFIT[kind])}
    with pytest.raises(TypeError, match=rf"^{name}[\[\]0-9]* (has dtype|is a tensor of layout)"):
        call(**arguments)


@pytest.mark.parametrize("call, name", [place for place in PLACES if len(CALLS[place[0]]) > 1])
def test_a_tensor_on_another_device_is_named(call, name) -> None:
    first = next(iter(CALLS[call]))
    arguments = CALLS[call] | {name: replaced(CALLS[call][name], lambda t: t.to("meta"))}
    odd = rf"{name}[\[\]0-9]* is on meta; want the device of {first}, cpu"
    with pytest.raises(ValueError, match=odd if name != first else "is on cpu; want the device of .*, meta"):
        call(**arguments)


@pytest.mark.parametrize("kind", ["sparse", "nested"])
def test_codes_and_masks_of_other_kinds_are_named(kind) -> None:
    codes, layer = UNFIT[kind](torch.zeros(2, 3, dtype=torch.int64)), vqfast.VQLayer(4, 3)
    for call in (lambda: perplexity(codes, 4), lambda: layer.decode(codes)):
        with pytest.raises(TypeError, match="indices is a tensor of layout"):
            call()
    with pytest.raises(TypeError, match="mask is a tensor of layout"):
        layer(zeros(2, 3, 3), UNFIT[kind](torch.ones(2, 3, dtype=torch.bool)))


@pytest.mark.parametrize("dtype, scale", [(torch.float32, 1e30), (torch.float64, 1e200)])
@pytest.mark.parametrize("power", [1, -1])
def test_lengths_whose_squares_no_dtype_holds(dtype, scale, power) -> None:
    x, codebook = torch.randn(20, 3).to(dtype), torch.randn(5, 3).to(dtype)
    torch.testing.assert_close(unit(x * scale**power), unit(x))
    layers = [vqfast.VQLayer(5, 3, metric="cosine", kmeans_init=False).to(dtype) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    assert torch.equal(layers[0](x * scale**power).indices, layers[1](x).indices)
    for metric in ("l2", "cosine"):
        want, distance = nearest_code(x, codebook, metric=metric, return_distances=True)
        scaled = nearest_code(x * scale**power, codebook * scale**power, metric=metric, return_distances=True)
        assert torch.equal(scaled[0], want)
        torch.testing.assert_close(scaled[1] / (scale**power if metric == "l2" else 1), distance)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype, scale", [(torch.float32, 1), (torch.float64, 1e-300)])
def test_a_code_that_is_not_finite_is_chosen_only_if_all_are(dtype, scale, bad) -> None:
    good = torch.randn(5, 3).to(dtype) * scale
    book = torch.full((8, 3), bad, dtype=dtype)
    places = torch.tensor([1, 2, 4, 6, 7])
    book[places] = good
    x = torch.randn(20, 3).to(dtype) * scale
    for call in (
        nearest_code,
        lambda x, e: nearest_code(x, e, metric="cosine"),
        nearest_unit_code,
        lambda x, e: quantize(x, e).indices,
        lambda x, e: residual_codes(x, [e])[:, 0],
    ):
        assert torch.equal(call(x, book), places[call(x, good)])
    out = quantize(x, book[:1])
    assert out.indices.eq(0).all() and not out.quantized.isfinite().any() and not out.codebook_loss.isfinite()
    assert not nearest_code(x, book[:1], return_distances=True)[1].isfinite().any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "size, stack, mask", [(1, "full", "B"), (3, "horizontal", "A"), (1, "vertical", "B")]
)
def test_a_large_convolution_of_one_tap(monkeypatch, layout, stack: str, mask: str, size: int) -> None:
    """It may be PyTorch's, but not where the tap is a neighbour: a kernel of one weight too."""
    x, weight, bias = arguments((96, 64), (4, 32, 32), size, stack, mask)
    x = x.contiguous(memory_format=layout)
    expected = truth(x, weight, bias, size, mask, stack, 1)
    for backend in (None, "reference"):
        monkeypatch.delenv("VQFAST_BACKEND", raising=False)
        if backend:
            monkeypatch.setenv("VQFAST_BACKEND", backend)
        for learns in (False, True):
            weight.requires_grad_(learns)
            output = vqfast.functional.masked_conv2d(x, weight, bias, mask_type=mask, stack=stack)
            assert output.is_contiguous(memory_format=layout) and output.requires_grad is learns
            torch.testing.assert_close(output.double(), expected, atol=1e-4, rtol=1e-4)
