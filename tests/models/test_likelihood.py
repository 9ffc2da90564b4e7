"""The discretised logistic mixture against its definition in float64, and the bound that it makes."""

from __future__ import annotations

import json
import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from mpmath import exp, log, mpf, tanh, workdps
from torch import Tensor

from vqfast.models import (
    VQVAE,
    logistic_mixture_mean,
    logistic_mixture_nats,
    mixture_channels,
)


def draw(batch: int, channels: int, num_mixtures: int, *spatial: int) -> Tensor:
    """Parameters of narrow and wide components, means in and out of the range of the values."""
    torch.manual_seed(0)
    size = mixture_channels(channels, 1)
    parameters = torch.randn(batch, num_mixtures, size, *spatial, dtype=torch.float64)
    parameters[:, :, 1 + channels : 1 + 2 * channels] -= 2
    return parameters.flatten(1, 2)


def probability(parameters: np.ndarray, values: list[float], num_values: int) -> mpf:
    """``p(values)`` at one position, for ``parameters (M, P)``, by its definition, with 50 digits."""
    channels, total, half = len(values), mpf(0), mpf(1) / (num_values - 1)
    weights = [exp(mpf(logit)) for logit in parameters[:, 0]]
    scaled = [2 * mpf(value) - 1 for value in values]
    for weight, component in zip(weights, parameters, strict=True):
        means, log_scales = component[1 : 1 + channels], component[1 + channels : 1 + 2 * channels]
        coefficients, p = iter(component[1 + 2 * channels :]), weight / sum(weights)
        for c in range(channels):
            mean = mpf(means[c]) + sum(tanh(mpf(next(coefficients))) * scaled[d] for d in range(c))
            scale = exp(max(mpf(log_scales[c]), mpf(-7)))
            upper = 1 if values[c] == 1 else 1 / (1 + exp(-(scaled[c] + half - mean) / scale))
            lower = 0 if values[c] == 0 else 1 / (1 + exp(-(scaled[c] - half - mean) / scale))
            p *= upper - lower
        total += p
    return total


@pytest.mark.parametrize(("channels", "num_mixtures"), [(1, 1), (1, 5), (2, 3), (3, 4), (4, 2)])
def test_nats_are_those_of_the_definition(channels: int, num_mixtures: int) -> None:
    parameters = draw(2, channels, num_mixtures, 2, 3)
    x = torch.randint(256, (2, channels, 2, 3)) / torch.tensor(255.0, dtype=torch.float64)
    x[0, :, 0, 0], x[1, :, 1, 2] = 0, 1
    by_position = parameters.unflatten(1, (num_mixtures, -1)).movedim((1, 2), (-2, -1)).numpy()
    with workdps(50):
        expected = [
            -sum(
                float(log(probability(by_position[b, i, j], x[b, :, i, j].tolist(), 256)))
                for i, j in product(range(2), range(3))
            )
            for b in range(2)
        ]
    nats = logistic_mixture_nats(parameters, x)
    torch.testing.assert_close(nats, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
    single = logistic_mixture_nats(parameters.float(), x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), nats, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("channels", "num_mixtures", "num_values"), [(1, 1, 256), (1, 10, 256), (2, 3, 32), (3, 3, 9), (1, 2, 2)]
)
def test_probabilities_sum_to_one(channels: int, num_mixtures: int, num_values: int) -> None:
    values = torch.arange(num_values, dtype=torch.float64) / (num_values - 1)
    x = torch.cartesian_prod(*[values] * channels).view(-1, channels, 1)
    for seed in range(3):
        parameters = draw(1, channels, num_mixtures, 1) * (1 + 2 * seed)
        nats = logistic_mixture_nats(parameters.expand(len(x), -1, -1), x, num_values=num_values)
        assert (-nats).exp().sum().item() == pytest.approx(1, abs=1e-12)
    narrow = torch.zeros(1, mixture_channels(channels, 1), 1).double() - 50  # far below all values
    nats = logistic_mixture_nats(narrow.expand(len(x), -1, -1), x, num_values=num_values)
    assert (-nats).exp().sum().item() == pytest.approx(1, abs=1e-12) and nats.isfinite().all()


def test_extreme_parameters_have_finite_nats_and_gradients() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for mean, log_scale in product((-30.0, 0.0, 30.0), (-40.0, 0.0, 40.0)):
            parameters = torch.tensor([0.0, mean, log_scale], dtype=dtype).view(1, 3, 1).requires_grad_()
            for value in (0.0, 128 / 255, 1.0):
                nats = logistic_mixture_nats(parameters, torch.full((1, 1, 1), value, dtype=dtype))
                (gradient,) = torch.autograd.grad(nats.sum(), parameters)
                assert nats.isfinite().all() and gradient.isfinite().all()
                assert nats.dtype == torch.float32


def test_gradients_are_those_of_differences() -> None:
    parameters = draw(2, 3, 2, 2).requires_grad_()
    x = torch.randint(256, (2, 3, 2)) / torch.tensor(255.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: logistic_mixture_nats(p, x), parameters)


def test_mean_is_that_of_samples() -> None:
    parameters = draw(1, 3, 4, 1)
    torch.manual_seed(1)
    count, by_component = 400_000, parameters.view(4, -1)
    chosen = by_component[torch.multinomial(by_component[:, 0].softmax(0), count, replacement=True)]
    uniform = torch.rand(3, count, dtype=torch.float64)
    values: list[Tensor] = []
    coefficients = chosen[:, 7:].tanh()
    for c in range(3):
        mean = chosen[:, 1 + c]
        for d in range(c):
            mean = mean + coefficients[:, c * (c - 1) // 2 + d] * values[d]
        values.append(mean + chosen[:, 4 + c].exp() * uniform[c].logit())
    expected = (torch.stack(values).mean(1) + 1) / 2
    found = logistic_mixture_mean(parameters, 3).flatten()
    torch.testing.assert_close(found, expected.clamp(0, 1), rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [("paper", {}), ("keras", {"in_channels": 3}), ("paper-speech-mirrored", {"ndim": 1})],
)
def test_a_model_with_a_likelihood(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = VQVAE.named(
        name, hidden_channels=16, num_embeddings=8, embedding_dim=4, num_mixtures=3, **options
    )
    spatial = (8, 8) if model.ndim == 2 else (128,)
    x = torch.randint(60, 160, (4, model.in_channels, *spatial)) / 255
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = None
    for _ in range(30):
        out, nats = model(x, return_nats=True)
        loss = nats.mean() / x[0].numel() + out.loss
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first - 0.3
    model.eval()
    out, nats = model(x, return_nats=True)
    assert nats.shape == (4,) and out.reconstruction.shape == x.shape
    assert torch.equal(model(x).reconstruction, out.reconstruction)
    torch.testing.assert_close(model.decode(out.indices), out.reconstruction)
    decoded = model.decoder(model.vq.decode(out.indices))
    torch.testing.assert_close(logistic_mixture_nats(decoded, x), nats)
    codes, values = out.indices[0].numel(), x[0].numel()
    torch.testing.assert_close(model.bits_per_dim(x), (nats / math.log(2) + codes * 3) / values)
    torch.testing.assert_close(model.bits_per_dim(x, code_bits=torch.zeros(4)), nats / math.log(2) / values)
    again = VQVAE(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    assert again.config == model.config and again.num_mixtures == 3


def test_wrong_arguments() -> None:
    x = torch.zeros(2, 1, 4)
    parameters = torch.zeros(2, 6, 4)
    for call, error, message in [
        (lambda: logistic_mixture_nats(parameters, x[:, 0]), ValueError, r"x has shape \(2, 4\); want"),
        (lambda: logistic_mixture_nats(parameters, x[:1]), ValueError, r"x has shape \(1, 1, 4\); want"),
        (lambda: logistic_mixture_nats(parameters[:, :5], x), ValueError, r"parameters has shape \(2, 5, 4"),
        (lambda: logistic_mixture_nats(parameters, x.long()), TypeError, "x has dtype torch.int64"),
        (lambda: logistic_mixture_nats(parameters, x, num_values=1), ValueError, "num_values is 1; want"),
        (lambda: logistic_mixture_mean(parameters, 0), ValueError, "channels is 0; want a positive"),
        (lambda: logistic_mixture_mean(parameters, 3), ValueError, "parameters has shape"),
        (lambda: mixture_channels(1, 1.5), TypeError, "num_mixtures is 1.5; want"),
        (lambda: VQVAE("ruseckas", num_mixtures=5), ValueError, "num_mixtures is 5; want None with arch"),
        (lambda: VQVAE(num_mixtures=-1), ValueError, "num_mixtures is -1; want an integer, 0 or more"),
    ]:
        with pytest.raises(error, match=message):
            call()
    model = VQVAE(hidden_channels=8)
    image = torch.zeros(1, 3, 4, 4)
    for call in (model.bits_per_dim, lambda x: model(x, return_nats=True)):
        with pytest.raises(ValueError, match="num_mixtures is 0; want 1 or more for a likelihood"):
            call(image)
    model = VQVAE(hidden_channels=8, num_mixtures=1)
    with pytest.raises(ValueError, match=r"code_bits has shape \(2,\); want \(1,\)"):
        model.bits_per_dim(image, code_bits=torch.zeros(2))
