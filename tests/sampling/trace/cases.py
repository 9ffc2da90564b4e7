"""Networks as cases: how they are called, and the loop that their users write."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.sampling.trace import networks
from tests.sampling.trace.networks import K
from vqfast.sampling.draw import gumbel

CASES: dict[str, tuple[type[nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "in-place-masks": (networks.InPlaceMasked, (4, 5), {"num_classes": 3}),
    "buffers": (networks.Buffered, (4, 5), {}),
    "shifts": (networks.Shifted, (4, 5), {"num_classes": 3}),
    "next": (networks.Dilated, (19,), {"num_classes": 3, "predicts": "next"}),
    "activations": (networks.Activated, (4, 5), {}),
    "conditioned": (networks.Conditioned, (4, 6), {"condition": torch.arange(6).view(1, 2, 3) % 4}),
}


def make_network(case: str) -> nn.Module:
    """A case's network in float64, with weights large enough for codes to matter."""
    torch.manual_seed(0)
    network = CASES[case][0]().double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 if parameter.ndim == 1 else 2)
    return network


def given_of(case: str, num: int) -> dict[str, Tensor]:
    """Labels and condition of ``num`` samples, in the order of the network's arguments."""
    options, given = CASES[case][2], {}
    if "num_classes" in options:
        given["labels"] = torch.arange(num) % 3
    if "condition" in options:
        given["condition"] = torch.arange(6 * num).view(num, 2, 3) * 7 % 4
    return given


def own_loop(network: nn.Module, case: str, num: int, shape: tuple[int, ...]) -> Tensor:
    """The loop that people write, a pass of the network for each position, with the noise of seed 0."""
    given = given_of(case, num).values()
    codes = torch.zeros(num, *shape, dtype=torch.int64)
    flat, behind = codes.view(num, -1), int(case == "next")
    for position in range(behind, flat.shape[1]):
        logits = network(codes, *given).flatten(2)[:, :, position - behind].log_softmax(1)
        noise = gumbel(0, torch.arange(num), torch.tensor([position]), K)[:, 0]
        flat[:, position] = (logits + noise).argmax(1)
    return codes


def known_of(case: str, num: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The first codes, for a network that predicts the next code."""
    known = torch.full((num, *shape), -1)
    known[..., 0] = 0
    return {"known": known} if case == "next" else {}
