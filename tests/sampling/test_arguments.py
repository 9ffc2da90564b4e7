"""Arguments of sample: which types they may have, and the errors that name a wrong one."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import vqfast
from tests.priors.small import BOTH, Conditioning, MakePrior, some_known


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("name", ["numbers", "labels", "known"])
def test_integer_arguments_may_have_any_integer_dtype(
    make_prior: MakePrior, name: str, dtype: torch.dtype
) -> None:
    prior = make_prior("gated", num_classes=3)
    arguments = {
        "numbers": torch.tensor([0, 1, 77, 5]),
        "labels": torch.tensor([2, 0, 1, 1]),
        "known": some_known(prior, 4, (3, 4), 1 if (name, dtype) == ("known", torch.uint8) else 0.3, seed=0),
    }
    expected = prior.sample(4, (3, 4), **arguments)
    drawn = prior.sample(4, (3, 4), **arguments | {name: arguments[name].to(dtype)})
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(("num", "batch_size"), (0, -1)),
        *product(("shape",), ((0, 4), (3, -1), (3,), (1, 3, 4))),
        *product(("temperature",), (-1, float("nan"), float("inf"), 1e301)),
        *product(("top_k",), (0, -1)),
        *product(("top_p",), (0, -0.1, 1.1, float("nan"))),
        *product(("seed",), (-1, 2**64)),
        ("method", "fast"),
        *product(("numbers",), ([0], [[0, 1]], [-1, 0], [0.0, 1.0])),
        *product(("labels",), ([0], [[0, 1]], [0, 3], [-1, 0], [0.0, 1.0], None)),
        *product(
            ("known",), (0, [[0] * 4] * 3, [[[-2] * 4] * 3] * 2, [[[5] * 4] * 3] * 2, [[[0.5] * 4] * 3] * 2)
        ),
        *product(("condition",), (0.0, [[[[0.0] * 4] * 3]] * 2, None)),
    ],
    ids=str,
)
def test_bad_argument_is_named(
    make_prior: MakePrior, conditioning: Conditioning, name: str, value: Any
) -> None:
    prior = make_prior("gated", **BOTH)
    if name in ("numbers", "labels", "known", "condition") and value is not None:
        value = torch.tensor(value)
    options = {"num": 2, "shape": (3, 4), **conditioning(prior, 2, (3, 4)), name: value}
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
        prior.sample(**options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(("num", "batch_size", "top_k", "seed", "labels"), (True, 1.5, "2", torch.tensor(2))),
        *product(("shape",), (4, (3.0, 4), (True, 4))),
        *product(("temperature", "top_p"), (True, "1", 1j, torch.tensor(0.5))),
        *product(("progress",), ("bar", 1)),
        *product(("precision",), (True, 16, torch.bfloat16)),
        *product(("numbers", "labels"), ([0.0, 1.0], [True, False])),
        ("known", [[[True] * 4] * 3] * 2),
    ],
    ids=str,
)
def test_argument_of_another_kind_is_a_type_error(make_prior: MakePrior, name: str, value: Any) -> None:
    if isinstance(value, list):
        value = torch.tensor(value)
    elif name == "labels" and isinstance(value, Tensor):
        value = value.bool()
    options = {"num": 2, "shape": (3, 4), "labels": 0, name: value}
    for sample in ("sample", "sample_batches"):
        with pytest.raises(TypeError, match=rf"\b{name}\b"):
            getattr(make_prior("gated", num_classes=3), sample)(**options)


@pytest.mark.parametrize("shape", [4, (4,)])
def test_a_wrong_shape_is_told_the_sizes_by_name(make_prior: MakePrior, shape: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"want \(H, W\)"):
        make_prior("gated").sample(2, shape)
    with pytest.raises((TypeError, ValueError), match=r"want \(T,\)"):
        vqfast.WaveNet(4, 4, 1).sample(2, shape if shape == 4 else (1, 4))


@pytest.mark.parametrize("labels", [1, [0, 1]], ids=str)
def test_labels_without_classes(make_prior: MakePrior, labels: Any) -> None:
    labels = torch.tensor(labels) if isinstance(labels, list) else labels
    with pytest.raises(ValueError, match="labels is given; want None, since the prior has no classes"):
        make_prior("gated").sample(2, (3, 4), labels=labels)


@pytest.mark.parametrize("label", [True, 1.5, torch.tensor([0.0, 1.0]), torch.tensor([True, False])], ids=str)
@pytest.mark.parametrize("method", ["forward", "bits_per_code"])
def test_label_that_is_no_integer_is_a_type_error(make_prior: MakePrior, method: str, label: Any) -> None:
    prior, codes = make_prior("gated", num_classes=3), torch.zeros(2, 3, 4, dtype=torch.int64)
    with pytest.raises(TypeError, match="labels"):
        getattr(prior, method)(codes, label)
    assert torch.equal(getattr(prior, method)(codes, 2), getattr(prior, method)(codes, torch.tensor([2, 2])))


@pytest.mark.parametrize("name", ["numbers", "labels", "known", "condition"])
def test_list_for_a_tensor_is_a_type_error(
    make_prior: MakePrior, conditioning: Conditioning, name: str
) -> None:
    prior = make_prior("gated", **BOTH)
    options = conditioning(prior, 2, (3, 4))
    with pytest.raises(TypeError, match=name):
        prior.sample(2, (3, 4), **options | {name: [0, 1]})


@pytest.mark.parametrize("name", ["labels", "condition"])
def test_conditioning_that_the_prior_does_not_take_is_an_error(make_prior: MakePrior, name: str) -> None:
    value = {"labels": 0, "condition": torch.zeros(2, 1, 3, 4)}[name]
    with pytest.raises(ValueError, match=name):
        make_prior("gated").sample(2, (3, 4), **{name: value})
