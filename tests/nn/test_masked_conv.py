from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vqfast.nn import MaskedConv1d, MaskedConv2d

KINDS = [(stack, mask) for stack in ("full", "vertical", "horizontal") for mask in "AB"]


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("plain, masked", [(nn.Conv1d, MaskedConv1d), (nn.Conv2d, MaskedConv2d)])
def test_checkpoint_of_an_ordinary_convolution_loads(plain, masked, mask) -> None:
    trained, conv = plain(3, 4, 5, padding=2), masked(3, 4, 5, mask_type=mask)
    conv.load_state_dict(trained.state_dict())
    x = torch.randn(2, 3, 7, 6)[..., : 99 if masked is MaskedConv2d else 1].squeeze(-1)
    with torch.no_grad():
        taps = trained.weight.flatten(2)  # a view: hides the taps in place
        taps[:, :, taps.shape[2] // 2 + (mask == "B") :] = 0
        torch.testing.assert_close(conv(x), trained(x))


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stack, mask", KINDS)
def test_output_is_the_sum_over_offsets_of_shifted_inputs_times_matrix(stack, mask, dilation) -> None:
    conv = MaskedConv2d(3, 4, 5, mask_type=mask, stack=stack, dilation=dilation)
    x = torch.randn(2, 3, 6, 7)
    margin = 2 * dilation
    padded = F.pad(x, [margin] * 4)
    expected = conv.bias.detach().view(4, 1, 1).expand(2, 4, 6, 7).clone()
    assert len(conv.offsets()) == len(conv.matrix()) == conv.taps
    for (dy, dx), matrix in zip(conv.offsets(), conv.matrix().detach(), strict=True):
        seen = padded[:, :, margin + dy : margin + dy + 6, margin + dx : margin + dx + 7]
        expected += torch.einsum("bihw,io->bohw", seen, matrix)
    torch.testing.assert_close(conv(x), expected)


def test_offsets_and_matrix_of_one_dimension_agree_with_the_forward() -> None:
    conv = MaskedConv1d(3, 4, 5, mask_type="B", dilation=3, bias=False)
    assert conv.offsets() == [(0, -6), (0, -3), (0, 0)]
    x = torch.randn(2, 3, 20)
    matrix = conv.matrix()
    expected = sum(
        F.pad(x, [-dx, 0])[..., :20].mT @ m for (_, dx), m in zip(conv.offsets(), matrix, strict=True)
    )
    torch.testing.assert_close(conv(x), expected.mT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stack, mask", KINDS)
def test_gradient_of_one_output_reaches_its_visible_positions_and_no_other(
    stack, mask, dilation, dtype
) -> None:
    """In float32 rounding may reach further along rows that are seen whole, but never to what comes later."""
    conv = MaskedConv2d(2, 3, 5, mask_type=mask, stack=stack, dilation=dilation).to(dtype)
    x = torch.randn(1, 2, 9, 13, dtype=dtype, requires_grad=True)
    conv(x)[0, :, 4, 6].sum().backward()
    grad = x.grad.abs().sum((0, 1))

    def reached(minimum: float) -> set[tuple[float, float]]:
        found = zip(*(axis.tolist() for axis in (grad > minimum).nonzero(as_tuple=True)), strict=True)
        return {((y - 4) / dilation, (x - 6) / dilation) for y, x in found}

    window = [(y, x) for y in range(-2, 3) for x in range(-2, 3)]
    visible = {
        "full": {(y, x) for y, x in window if (y, x) < (0, mask == "B")},
        "vertical": {(y, x) for y, x in window if y < (mask == "B")},
        "horizontal": {(y, x) for y, x in window if y == 0 and x < (mask == "B")},
    }[stack]
    assert reached(1e-6 * grad.max().item()) == visible
    whole = {y for y, x in visible if x > 0}
    assert {(y, x) for y, x in reached(0) if dtype == torch.float64 or y not in whole} <= visible


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stack, mask", KINDS)
def test_embedded_codes_are_the_convolution_of_one_hot_vectors(stack, mask, dilation) -> None:
    conv = MaskedConv2d(6, 4, 5, mask_type=mask, stack=stack, dilation=dilation).double()
    codes = torch.randint(6, (2, 5, 7))
    outs = conv.embed(codes), conv(F.one_hot(codes, 6).movedim(-1, 1).double())
    torch.testing.assert_close(*outs)
    grad = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad(out, list(conv.parameters()), grad) for out in outs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_codes_are_embedded_in_every_dtype(dtype) -> None:
    conv, codes = MaskedConv2d(6, 4, 3, mask_type="B").to(dtype), torch.randint(6, (2, 5, 7))
    out = conv.embed(codes)
    assert out.dtype == dtype
    out.sum().backward()
    assert conv.weight.grad.isfinite().all() and conv.weight.grad.any()


@pytest.mark.parametrize("activation, width", [("none", 4), ("relu", 4), ("gate", 2)])
def test_modules_pass_activation_extra_and_residual_on(activation, width) -> None:
    kinds = MaskedConv2d, MaskedConv1d
    plane, line = (kind(3, 4, 3, mask_type="B", activation=activation) for kind in kinds)
    for conv, size in ((plane, (5, 6)), (line, (7,))):
        x, extra, residual = torch.randn(2, 3, *size), torch.randn(2, 4, *size), torch.randn(2, width, *size)
        bare = type(conv)(3, 4, 3, mask_type="B")
        bare.load_state_dict(conv.state_dict())
        sums = bare(x) + extra
        a, b = sums.chunk(2, 1)
        expected = {"none": sums, "relu": sums.relu(), "gate": a.tanh() * b.sigmoid()}[activation] + residual
        torch.testing.assert_close(conv(x, extra, residual), expected)
        per_sample = extra[(..., *[slice(1)] * len(size))]
        torch.testing.assert_close(
            conv(x, per_sample), conv(x, per_sample.expand_as(extra).contiguous()), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("mask", ["A", "B"])
def test_gradient_in_one_dimension_reaches_no_later_step(mask) -> None:
    conv, x = MaskedConv1d(2, 3, 5, mask_type=mask), torch.randn(1, 2, 9, requires_grad=True)
    conv(x)[0, :, 4].sum().backward()
    assert x.grad.any(1)[0].nonzero().flatten().tolist() == [2, 3, 4][: 2 + (mask == "B")]


@pytest.mark.parametrize("mask", ["A", "B"])
def test_one_dimension_has_no_vertical_stack(mask) -> None:
    """There are no rows above, and with mask B the own row would show the future."""
    with pytest.raises(ValueError, match="vertical"):
        MaskedConv1d(2, 3, 3, mask_type=mask, stack="vertical")


@pytest.mark.parametrize("stack, mask", KINDS)
def test_initial_weights_fill_the_fan_in_of_the_visible_taps(stack, mask) -> None:
    conv = MaskedConv2d(16, 64, 3, mask_type=mask, stack=stack)
    bound = (conv.taps * 16) ** -0.5
    assert 0.99 * bound < conv.weight.abs().max() <= bound
    assert conv.bias.abs().max() <= bound


def test_bias_can_be_left_out() -> None:
    conv = MaskedConv2d(2, 3, 3, bias=False)
    assert list(conv.state_dict()) == ["weight"]
    assert not conv(torch.randn(1, 2, 1, 1)).any()  # one position, and mask A hides it


def test_runs_on_meta() -> None:
    with torch.device("meta"):
        assert MaskedConv2d(2, 3, 3)(torch.zeros(4, 2, 5, 6)).shape == (4, 3, 5, 6)


@pytest.mark.parametrize("conv", [MaskedConv1d, MaskedConv2d])
@pytest.mark.parametrize(
    "options, message",
    [
        ({"kernel_size": 4}, "kernel_size is 4"),
        ({"kernel_size": 0}, "kernel_size is 0"),
        ({"kernel_size": -1}, "kernel_size is -1"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"dilation": 0}, "dilation is 0"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"activation": "gate"}, "an even number"),
        ({"mask_type": "C"}, "mask_type is 'C'"),
        ({"stack": "diagonal"}, "stack is 'diagonal'"),
        ({"kernel_size": 1, "stack": "horizontal"}, "kernel_size is 1; want an odd integer, 3 or more"),
    ],
)
def test_bad_options_are_named(conv, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        conv(**{"in_channels": 2, "out_channels": 3, "kernel_size": 3, **options})


@pytest.mark.parametrize("name", ["in_channels", "out_channels", "kernel_size", "dilation"])
@pytest.mark.parametrize("value", [True, 3.0, "3"])
def test_sizes_are_integers(name, value) -> None:
    with pytest.raises(TypeError, match=f"{name} is {value!r}; want"):
        MaskedConv2d(**{"in_channels": 2, "out_channels": 3, "kernel_size": 3, name: value})


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float32])
def test_embed_refuses_codes_that_are_not_int64(dtype) -> None:
    with pytest.raises(TypeError, match="want torch"):
        MaskedConv2d(6, 4, 3).embed(torch.zeros(1, 3, 3, dtype=dtype))


def test_a_bias_of_another_dtype_is_refused() -> None:
    conv = MaskedConv2d(6, 4, 3, mask_type="B").bfloat16()
    conv.bias.data = conv.bias.data.float()
    with pytest.raises(TypeError, match="bias has dtype"):
        conv.embed(torch.randint(6, (2, 5, 7)))
