from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.priors.plain import GRIDS, PLAIN
from vqfast.ops.registry import TABLE, refusal
from vqfast.priors import PixelCNN
from vqfast.priors.base import CausalPrior

CONDITIONS = [{}, {"num_classes": 3}, {"condition_channels": 2}, {"num_classes": 3, "condition_channels": 2}]


@pytest.mark.parametrize("conditions", CONDITIONS, ids="-".join)
@torch.no_grad()
def test_forward_equals_the_same_network_in_plain_convolutions(
    make_prior: Callable[..., CausalPrior],
    random_codes: Callable[..., Tensor],
    conditioning: Callable[..., dict[str, Tensor]],
    kind: str,
    conditions: dict[str, int],
) -> None:
    prior = make_prior(kind, **conditions)
    codes, given = random_codes(prior, 3, GRIDS[kind]), conditioning(prior, 3, GRIDS[kind])
    expected = PLAIN[kind](prior.state_dict(), codes, given)
    torch.testing.assert_close(prior(codes, **given), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_config_and_state_dict_make_the_same_prior(
    make_prior: Callable[..., CausalPrior], random_codes: Callable[..., Tensor], kind: str
) -> None:
    sizes = {"num_embeddings": 7, "channels": 6, "num_layers": 2, "num_classes": 3, "condition_channels": 2}
    rest = {
        "gated": {
            "num_quantizers": None,
            "kernel_size": 5,
            "first_kernel_size": 3,
            "head_channels": 9,
            "dropout": 0.1,
        },
        "residual": {"num_residual_blocks": 3, "first_kernel_size": 3},
        "wavenet": {"dilation_cycle": 1, "condition_stride": 1, "num_mixtures": None},
        "snail": {
            "num_blocks": 1,
            "num_heads": 3,
            "kernel_size": 5,
            "first_kernel_size": 3,
            "head_channels": 9,
            "dropout": 0.1,
        },
    }
    prior = make_prior(kind, **sizes, **rest[kind])
    assert prior.config == {**sizes, **rest[kind]}
    again = type(prior)(**json.loads(json.dumps(prior.config))).double().eval()
    again.load_state_dict(prior.state_dict())
    codes = random_codes(prior, 2, GRIDS[kind])
    labels, condition = torch.tensor([0, 2]), torch.ones(2, 2, *GRIDS[kind]).double()
    assert torch.equal(again(codes, labels, condition), prior(codes, labels, condition))


@pytest.mark.parametrize(
    ("kind", "modules", "tables"),
    [
        (
            "gated",
            "layers.0.vertical layers.0.vertical_to_horizontal layers.0.horizontal layers.0.output "
            "layers.1.vertical layers.1.vertical_to_horizontal layers.1.horizontal layers.1.output "
            "head.0 head.2",
            "embedding layers.0.conditioning.labels layers.0.conditioning.condition "
            "layers.1.conditioning.labels layers.1.conditioning.condition",
        ),
        (
            "residual",
            "first blocks.0.shrink blocks.0.conv blocks.0.grow blocks.1.shrink blocks.1.conv blocks.1.grow "
            "layers.0 layers.1 head",
            "conditioning.labels conditioning.condition",
        ),
        (
            "wavenet",
            "first layers.0.conv layers.0.output layers.0.skip layers.1.conv layers.1.output layers.1.skip "
            "head.1 head.3",
            "embedding layers.0.conditioning.labels layers.0.conditioning.condition "
            "layers.1.conditioning.labels layers.1.conditioning.condition",
        ),
        (
            "snail",
            " ".join(
                f"blocks.{block}.{part}"
                for block in (0, 1)
                for part in (
                    *(f"layers.{layer}.{conv}" for layer in (0, 1) for conv in ("first", "second")),
                    *(f"attention.{of}" for of in ("query", "key", "value")),
                    *(f"output.{conv}" for conv in ("first", "more", "second")),
                )
            )
            + " first head.1 head.3",
            " ".join(
                f"blocks.{block}.{layer}.conditioning.{of}"
                for block in (0, 1)
                for layer in ("layers.0", "layers.1", "output")
                for of in ("labels", "condition")
            ),
        ),
    ],
)
def test_state_dict_keeps_its_names(
    make_prior: Callable[..., CausalPrior], kind: str, modules: str, tables: str
) -> None:
    names = {f"{module}.{part}" for module in modules.split() for part in ("weight", "bias")}
    names |= {f"{table}.weight" for table in tables.split()}
    assert set(make_prior(kind, num_layers=2, num_classes=2, condition_channels=1).state_dict()) == names


def test_gated_pixelcnn_has_the_number_of_parameters_counted_by_hand() -> None:
    shared = (256 * 256 + 256) + (128 * 128 + 128)  # vertical to horizontal, and the output
    first = (21 * 128 * 256 + 256) + (3 * 128 * 256 + 256) + shared  # 3 x 7 above, 3 to the left
    other = (
        (6 * 128 * 256 + 256) + (2 * 128 * 256 + 256) + shared
    )  # 2 x 3 above and 2 to the left, its own position included
    head = (128 * 512 + 512) + (512 * 512 + 512)
    prior = PixelCNN(num_embeddings=512, channels=128, num_layers=15)
    count = sum(parameter.numel() for parameter in prior.parameters())
    assert count == 512 * 128 + first + 14 * other + head == 6_092_928


@pytest.mark.parametrize(
    ("kind", "overrides", "name"),
    [
        *(
            (kind, {name: value}, name)
            for kind in GRIDS
            for name, value in (
                ("num_embeddings", 0),
                ("channels", 0),
                ("num_layers", -1),
                ("num_classes", 0),
                ("num_classes", -1),
                ("condition_channels", -1),
            )
        ),
        ("gated", {"head_channels": 0}, "head_channels"),
        ("gated", {"kernel_size": 4}, "kernel_size"),
        ("gated", {"kernel_size": 1}, "kernel"),  # the docstring wants 3 or more
        ("gated", {"first_kernel_size": 1}, "kernel"),
        ("residual", {"num_residual_blocks": 0}, "num_residual_blocks"),
        ("snail", {"num_blocks": 0}, "num_blocks"),
        ("snail", {"num_heads": -1}, "num_heads"),
        ("snail", {"num_heads": 3}, "num_heads is 3; want 0 or a divisor of 2"),
        ("residual", {"first_kernel_size": 1}, "kernel_size"),
        ("residual", {"first_kernel_size": 2}, "kernel_size"),
        ("wavenet", {"dilation_cycle": 0}, "dilation_cycle"),
    ],
)
def test_constructors_name_the_size_that_is_out_of_range(
    make_prior: Callable[..., CausalPrior], kind: str, overrides: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValueError, match=name):
        make_prior(kind, **overrides)


@torch.no_grad()
def test_constructors_take_device_and_dtype(make_prior: Callable[..., CausalPrior], kind: str) -> None:
    options = make_prior(kind, num_classes=2, condition_channels=1).config
    cls = type(make_prior(kind))
    assert {p.dtype for p in cls(**options, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {p.device.type for p in cls(**options, device="meta").parameters()} == {"meta"}
    torch.manual_seed(0)
    plain = cls(**options)
    torch.manual_seed(0)
    for name, parameter in cls(**options, device="cpu", dtype=torch.float32).named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name))
    with pytest.raises(TypeError, match="dtype is"):
        cls(**options, dtype="float32")


@pytest.mark.parametrize("value", [True, 1.5, "2", torch.tensor(2)], ids=str)
def test_constructors_name_the_size_that_is_no_integer(
    make_prior: Callable[..., CausalPrior], kind: str, value: object
) -> None:
    for name in make_prior(kind).config.keys() - {"dropout"}:
        with pytest.raises(TypeError, match=rf"{name} is .*; want an? .*integer"):
            make_prior(kind, **{name: value})


@pytest.mark.parametrize(
    ("conditions", "changes", "error"),
    [
        ({}, {"indices": lambda codes: codes + 4}, r"ValueError: indices has values .* want 0\.\.4"),
        ({}, {"indices": lambda codes: codes - 1}, r"ValueError: indices has values .* want 0\.\.4"),
        ({}, {"indices": lambda codes: codes.float()}, r"TypeError: indices has dtype torch\.float32"),
        ({}, {"indices": lambda codes: codes.tolist()}, "TypeError: indices is a list"),
        ({}, {"indices": lambda codes: codes[0]}, "ValueError: indices has shape"),
        ({}, {"indices": lambda codes: codes[:0]}, "ValueError: indices has shape .* not empty"),
        ({}, {"labels": [0, 1]}, "ValueError: labels is given; want None, since the prior has no classes"),
        ({}, {"condition": torch.ones(2, 1, 3, 4)}, "ValueError: condition has shape .* want None"),
        ({"num_classes": 3}, {}, r"ValueError: labels is None; want .* the prior has 3 classes"),
        ({"num_classes": 3}, {"labels": [0, 3]}, r"ValueError: labels has values 0\.\.3; want 0\.\.2"),
        ({"num_classes": 3}, {"labels": [0, -1]}, r"ValueError: labels has values -1\.\.0; want 0\.\.2"),
        ({"num_classes": 3}, {"labels": [0.0, 1.0]}, r"TypeError: labels has dtype torch\.float32"),
        ({"num_classes": 3}, {"labels": [0, 1, 2]}, r"ValueError: labels has shape \(3,\); want \(2,\)"),
        ({"num_classes": 3}, {"labels": [[0], [1]]}, r"ValueError: labels has shape \(2, 1\); want \(2,\)"),
        ({"condition_channels": 2}, {}, "ValueError: condition has shape None; want"),
        ({"condition_channels": 2}, {"condition": torch.ones(2, 3, 3, 4)}, "ValueError: condition has shape"),
        ({"condition_channels": 2}, {"condition": torch.ones(2, 2, 4, 3)}, "ValueError: condition has shape"),
    ],
)
def test_forward_says_what_is_wrong_with_its_input(
    make_prior: Callable[..., CausalPrior],
    random_codes: Callable[..., Tensor],
    conditions: dict[str, int],
    changes: dict[str, Any],
    error: str,
) -> None:
    prior = make_prior("gated", **conditions)
    codes = random_codes(prior, 2, (3, 4))
    codes[0, 0, :2] = torch.tensor([0, 4])  # both ends of the range
    given = {name: torch.tensor(value) if name == "labels" else value for name, value in changes.items()}
    codes = given.pop("indices", lambda codes: codes)(codes)
    with pytest.raises((TypeError, ValueError)) as caught:
        prior(codes, **given)
    assert caught.match(error.split(": ", 1)[1]) and caught.typename == error.split(":")[0]


@pytest.mark.parametrize("name", ["indices", "labels", "condition"])
def test_tensor_on_another_device_than_the_prior_is_named(
    make_prior: Callable[..., CausalPrior], kind: str, name: str
) -> None:
    prior = make_prior(kind, num_classes=3, condition_channels=1).to("meta")
    given = {
        "indices": torch.zeros(2, *GRIDS[kind], dtype=torch.int64),
        "labels": torch.zeros(2, dtype=torch.int64),
        "condition": torch.zeros(2, 1, *GRIDS[kind]),
    }
    given = {other: value if other == name else value.to("meta") for other, value in given.items()}
    with pytest.raises(ValueError, match=f"{name} is on cpu; want the device of the prior's weights, meta"):
        prior(**given)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@torch.no_grad()
def test_codes_and_labels_may_have_any_integer_dtype(
    make_prior: Callable[..., CausalPrior], random_codes: Callable[..., Tensor], kind: str, dtype: torch.dtype
) -> None:
    prior = make_prior(kind, num_classes=3)
    codes, labels = random_codes(prior, 2, GRIDS[kind]), torch.tensor([2, 0])
    assert torch.equal(prior(codes.to(dtype), labels.to(dtype)), prior(codes, labels))
    assert torch.equal(prior.bits_per_code(codes.to(dtype), labels), prior.bits_per_code(codes, labels))


@torch.no_grad()
def test_bits_per_code_are_the_mean_of_minus_log2_of_the_softmax(
    make_prior: Callable[..., CausalPrior],
    random_codes: Callable[..., Tensor],
    conditioning: Callable[..., dict[str, Tensor]],
    kind: str,
) -> None:
    prior = make_prior(kind, num_classes=3, condition_channels=2)
    codes, given = random_codes(prior, 3, GRIDS[kind]), conditioning(prior, 3, GRIDS[kind])
    nats = -prior(codes, **given).log_softmax(1)
    expected = [
        sum(sample[code, place] for place, code in enumerate(row)) / len(row) / math.log(2)
        for sample, row in zip(nats.flatten(2), codes.flatten(1).tolist(), strict=True)
    ]
    torch.testing.assert_close(prior.bits_per_code(codes, **given), torch.stack(expected))


@torch.no_grad()
def test_probabilities_of_all_grids_add_up_to_one(make_prior: Callable[..., CausalPrior], kind: str) -> None:
    prior = make_prior(kind, num_embeddings=3, num_classes=2)
    codes = torch.tensor(list(product(range(3), repeat=4))).view(81, *((2, 2) if prior.ndim == 2 else (4,)))
    for label in (0, 1):
        bits = 4 * prior.bits_per_code(codes, torch.full((81,), label))
        assert torch.exp2(-bits).sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_low_precision_logits_are_near_those_in_float64(
    make_prior: Callable[..., CausalPrior],
    random_codes: Callable[..., Tensor],
    conditioning: Callable[..., dict[str, Tensor]],
    kind: str,
    dtype: torch.dtype,
) -> None:
    prior = make_prior(kind, num_classes=3, condition_channels=2)
    codes, given = random_codes(prior, 3, GRIDS[kind]), conditioning(prior, 3, GRIDS[kind])
    expected = prior(codes, **given)
    logits = prior.to(dtype)(codes, given["labels"], given["condition"].to(dtype))
    assert logits.dtype == dtype
    tolerance = 20 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "name", [n for n in TABLE["masked_conv"] if not refusal("masked_conv", n, torch.zeros(1))]
)
def test_every_backend_trains_alike(
    make_prior: Callable[..., CausalPrior],
    random_codes: Callable[..., Tensor],
    conditioning: Callable[..., dict[str, Tensor]],
    kind: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loss has the same gradients as with plain convolutions."""
    monkeypatch.setenv("VQFAST_BACKEND", name)
    prior = make_prior(kind, num_classes=3, condition_channels=2)
    codes, given = random_codes(prior, 3, GRIDS[kind]), conditioning(prior, 3, GRIDS[kind])
    loss = F.cross_entropy(prior(codes, **given), codes)
    parameters = dict(prior.named_parameters())
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    plain = PLAIN[kind](parameters, codes, given)
    wanted = torch.autograd.grad(
        F.cross_entropy(plain, codes), list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    for key, got, want in zip(parameters, grads, wanted, strict=True):
        got = torch.zeros_like(want) if got is None else got
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10, msg=key)
