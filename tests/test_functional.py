from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from vqfast.functional import masked_conv1d, masked_conv2d, nearest_code, perplexity, quantize


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


IMAGE, KERNEL = zeros(1, 2, 5, 5), zeros(4, 2, 3, 3)
REFUSALS = [
    (nearest_code, ([[0.0]], zeros(2, 1)), TypeError, "x is a list"),
    (nearest_code, (zeros(3, 1), None), TypeError, "codebook is a NoneType"),
    (nearest_code, (zeros(3, 1).long(), zeros(2, 1)), TypeError, "x has dtype torch.int64"),
    (nearest_code, (zeros(3, 1), zeros(2, 1).to(torch.complex64)), TypeError, "codebook has dtype"),
    (nearest_code, (zeros(3), zeros(2, 3)), ValueError, "x has shape (3,)"),
    (nearest_code, (zeros(2, 3), zeros(3)), ValueError, "codebook (3,)"),
    (nearest_code, (zeros(2, 3), zeros(2, 4)), ValueError, "x has 3 channels and codebook 4"),
    (nearest_code, (zeros(2, 3), zeros(0, 3)), ValueError, "codebook has shape (0, 3)"),
    (nearest_code, (zeros(2, 0), zeros(2, 0)), ValueError, "codebook has shape (2, 0)"),
    (nearest_code, (zeros(2, 5, 3), zeros(3, 5, 3)), ValueError, "don't broadcast"),
    (quantize, (zeros(2, 4).long(), zeros(3, 4)), TypeError, "z_e has dtype torch.int64"),
    (quantize, (zeros(2, 4), zeros(3, 4).long()), TypeError, "codebook has dtype torch.int64"),
    (quantize, (zeros(2, 4), [1.0]), TypeError, "codebook is a list"),
    (quantize, (zeros(2, 4), zeros(4)), ValueError, "codebook has shape (4,)"),
    (quantize, (zeros(2, 4), zeros(0, 4)), ValueError, "codebook has shape (0, 4)"),
    (quantize, (zeros(2, 0), zeros(3, 0)), ValueError, "codebook has shape (3, 0)"),
    (quantize, (zeros(4), zeros(3, 4)), ValueError, "z_e has shape (4,)"),
    (quantize, (zeros(2, 4), zeros(3, 4), 2), ValueError, "channels at 2"),
    (quantize, (zeros(2, 4), zeros(3, 4), -3), ValueError, "channels at -3"),
    (quantize, (zeros(2, 5), zeros(3, 4)), ValueError, "z_e has 5 channels at dimension 1 of (2, 5)"),
    (masked_conv2d, (IMAGE.long(), KERNEL), TypeError, "x has dtype torch.int64"),
    (masked_conv2d, (IMAGE, [1]), TypeError, "weight is a list"),
    (masked_conv2d, (IMAGE, KERNEL, zeros(4).int()), TypeError, "bias has dtype torch.int32"),
    (masked_conv2d, (IMAGE, KERNEL, [0.0] * 4), TypeError, "bias is a list"),
    (masked_conv2d, (IMAGE, KERNEL, zeros(3)), ValueError, "bias has shape (3,); want (4,)"),
    (masked_conv2d, (IMAGE, KERNEL, None, "a"), ValueError, "mask_type is 'a'"),
    (masked_conv2d, (IMAGE, KERNEL, None, "A", "up"), ValueError, "stack is 'up'"),
    (masked_conv2d, (IMAGE, KERNEL, None, "A", "full", 0), ValueError, "dilation is 0"),
    (masked_conv2d, (IMAGE[0], KERNEL), ValueError, "x has shape (2, 5, 5)"),
    (masked_conv2d, (IMAGE, zeros(4, 3, 3, 3)), ValueError, "weight (4, 3, 3, 3)"),
    (masked_conv2d, (IMAGE, KERNEL[..., :2]), ValueError, "3x2 kernel, which is no full kernel"),
    (masked_conv2d, (IMAGE, KERNEL[..., :0], None, "A", "horizontal"), ValueError, "3x0 kernel"),
    (
        masked_conv2d,
        (IMAGE, KERNEL, None, "A", "horizontal"),
        ValueError,
        "3x3 kernel, which is no horizontal",
    ),
    (masked_conv2d, (zeros(1, 2, 0, 5), KERNEL), ValueError, "x has shape (1, 2, 0, 5)"),
    (masked_conv1d, (zeros(1, 2, 5).long(), zeros(4, 2, 3)), TypeError, "x has dtype torch.int64"),
    (masked_conv1d, (zeros(1, 2, 5), None), TypeError, "weight is a NoneType"),
    (masked_conv1d, (zeros(2, 5), zeros(4, 2, 3)), ValueError, "x has shape (2, 5)"),
    (masked_conv1d, (zeros(1, 2, 5), KERNEL), ValueError, "weight (4, 2, 3, 3)"),
    (masked_conv1d, (zeros(1, 2, 5), zeros(4, 2, 3), None, "B", "vertical"), ValueError, "vertical"),
    (perplexity, (torch.tensor([0.5]), 4), TypeError, "indices has dtype torch.float32"),
    (perplexity, ([0], 4), TypeError, "indices is a list"),
    (perplexity, (torch.tensor([4]), 4), ValueError, "indices has values 4..4; want 0..3"),
    (perplexity, (torch.tensor([-1, 3]), 4), ValueError, "indices has values -1..3; want 0..3"),
]


@pytest.mark.parametrize("function, arguments, error, message", REFUSALS)
def test_bad_arguments_are_named_at_the_door(function, arguments, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        function(*arguments)


def test_perplexity_of_no_indices_is_nan() -> None:
    assert perplexity(torch.zeros(0, dtype=torch.int64), 4).isnan()


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
