"""The small priors of ``small.py``, written with plain convolutions, as other people write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GRIDS = {"gated": (4, 6), "residual": (4, 6), "wavenet": (20,), "snail": (4, 6)}
State = dict[str, Tensor]


def bias_of(state: State, name: str, given: dict[str, Tensor]) -> Tensor | float:
    """The bias of a layer: an embedding of the label plus a 1x1 convolution of the map."""
    bias = 0.0
    if "labels" in given:
        bias = state[f"{name}.labels.weight"][given["labels"]][:, :, None, None]
    if "condition" in given:
        weight = state[f"{name}.condition.weight"]
        condition = given["condition"].reshape(
            len(given["condition"]), weight.shape[1], -1, GRIDS["gated"][1]
        )
        bias = bias + F.conv2d(condition, weight)
    return bias


def common_gated_pixelcnn(state: State, codes: Tensor, given: dict[str, Tensor]) -> Tensor:
    """The network as common PyTorch repositories write it: pad, convolve, crop; mask A zeroes weights."""

    def gate(x: Tensor) -> Tensor:
        return x.chunk(2, 1)[0].tanh() * x.chunk(2, 1)[1].sigmoid()

    height, width = codes.shape[1:]
    v = h = F.embedding(codes, state["embedding.weight"]).permute(0, 3, 1, 2)
    for number in range(sum(name.endswith("vertical.weight") for name in state)):
        p = {
            name.split(".", 2)[2]: value
            for name, value in state.items()
            if name.startswith(f"layers.{number}.")
        }
        vertical, horizontal = p["vertical.weight"], p["horizontal.weight"]
        if number == 0:  # mask A: the last row of the one kernel and the last column of the other are 0
            vertical, horizontal = F.pad(vertical, (0, 0, 0, 1)), F.pad(horizontal, (0, 1))
        half = vertical.shape[3] // 2
        assert vertical.shape[2:] == (half + 1, 2 * half + 1) and horizontal.shape[2:] == (1, half + 1)
        above = F.conv2d(v, vertical, p["vertical.bias"], padding=(half, half))[:, :, :height]
        across = F.conv2d(h, horizontal, p["horizontal.bias"], padding=(0, half))[:, :, :, :width]
        across = across + F.conv2d(
            above, p["vertical_to_horizontal.weight"], p["vertical_to_horizontal.bias"]
        )
        bias = bias_of(state, f"layers.{number}.conditioning", given)
        out = F.conv2d(gate(across + bias), p["output.weight"], p["output.bias"])
        v, h = gate(above + bias), out + h if number else out
    h = F.conv2d(h, state["head.0.weight"], state["head.0.bias"]).relu()
    return F.conv2d(h, state["head.2.weight"], state["head.2.bias"])


def keras_pixelcnn(state: State, codes: Tensor, given: dict[str, Tensor]) -> Tensor:
    """The network as the Keras example writes it: "same" padding, kernels times a mask."""

    def conv(x: Tensor, name: str, mask_type: str = "") -> Tensor:
        weight = state[f"{name}.weight"]
        middle = weight.shape[2] // 2
        if mask_type:
            mask = torch.zeros(weight.shape[2:])
            mask[:middle] = 1
            mask[middle, :middle] = 1
            if mask_type == "B":
                mask[middle, middle] = 1
            weight = weight * mask
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=middle)

    num_embeddings = len(state["head.bias"])
    one_hot = torch.eye(num_embeddings, dtype=torch.float64)[codes].permute(0, 3, 1, 2)
    x = (conv(one_hot, "first", "A") + bias_of(state, "conditioning", given)).relu()
    for number in range(sum(name.endswith("grow.weight") for name in state)):
        inner = conv(x, f"blocks.{number}.shrink").relu()
        inner = conv(inner, f"blocks.{number}.conv", "B").relu()
        x = x + conv(inner, f"blocks.{number}.grow").relu()
    for number in range(sum(name.startswith("layers.") for name in state) // 2):
        x = conv(x, f"layers.{number}", "B").relu()
    return conv(x, "head")


def plain_wavenet(state: State, codes: Tensor, given: dict[str, Tensor]) -> Tensor:
    """Convolutions over time, padded on the left; dilations 1, 2, 4, 1 (as in ``small.PRIORS``)."""

    def conv(x: Tensor, name: str, dilation: int = 1) -> Tensor:
        weight = state[f"{name}.weight"][:, :, 0]
        padded = F.pad(x, ((weight.shape[2] - 1) * dilation, 0))
        return F.conv1d(padded, weight, state[f"{name}.bias"], dilation=dilation)

    x = F.embedding(codes, state["embedding.weight"]).transpose(1, 2)
    x = conv(F.pad(x, (1, 0))[:, :, :-1], "first")
    total = torch.zeros_like(x)
    for number, dilation in enumerate((1, 2, 4, 1)):
        sums = conv(x, f"layers.{number}.conv", dilation)
        if "labels" in given:
            sums = sums + state[f"layers.{number}.conditioning.labels.weight"][given["labels"]][:, :, None]
        if "condition" in given:
            weight = state[f"layers.{number}.conditioning.condition.weight"][:, :, :, 0]
            sums = sums + F.conv1d(given["condition"], weight)
        filtered, gates = sums.chunk(2, 1)
        z = filtered.tanh() * gates.sigmoid()
        x, total = x + conv(z, f"layers.{number}.output"), total + conv(z, f"layers.{number}.skip")
    return conv(conv(total.relu(), "head.1").relu(), "head.3")


def plain_pixelsnail(state: State, codes: Tensor, given: dict[str, Tensor]) -> Tensor:
    """Kernels times a mask, and attention by a softmax of all scores, of which later ones are -inf."""

    def conv(x: Tensor, name: str, mask_type: str = "B") -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        middle = weight.shape[2] // 2
        seen = torch.ones(weight.shape[2:]).flatten()
        seen[len(seen) // 2 + (mask_type == "B") :] = 0
        return F.conv2d(x, weight * seen.view(weight.shape[2:]), bias, padding=middle)

    def residual(x: Tensor, name: str, more: Tensor | float) -> Tensor:
        inner = F.elu(conv(F.elu(x), f"{name}.first") + more)
        a, b = (conv(inner, f"{name}.second") + bias_of(state, f"{name}.conditioning", given)).chunk(2, 1)
        return x + a * b.sigmoid()

    one_hot = torch.eye(len(state["head.3.bias"]), dtype=torch.float64)[codes].permute(0, 3, 1, 2)
    x = conv(one_hot, "first", "A")
    height, width = codes.shape[1:]
    rows, columns = ((2 * torch.arange(n) + 1).double() / n - 1 for n in (height, width))
    place = torch.stack([rows[:, None].expand(height, width), columns.expand(height, width)])
    place = place.expand(len(x), -1, -1, -1)
    later = torch.ones(height * width, height * width).triu(1) == 1
    for block in ("blocks.0", "blocks.1"):
        before, x = x, residual(x, f"{block}.layers.0", 0.0)
        query = conv(torch.cat([x, place], 1), f"{block}.attention.query").flatten(2)
        key, value = (
            conv(torch.cat([before, x, place], 1), f"{block}.attention.{of}").flatten(2)
            for of in ("key", "value")
        )
        scores = (query.mT @ key / len(key[0]) ** 0.5).masked_fill(later, -torch.inf)
        mean = (value @ scores.softmax(2).mT).view(len(x), -1, height, width)
        x = residual(x, f"{block}.output", conv(F.elu(mean), f"{block}.output.more"))
    return conv(conv(F.elu(x), "head.1").relu(), "head.3")


PLAIN = {
    "gated": common_gated_pixelcnn,
    "residual": keras_pixelcnn,
    "wavenet": plain_wavenet,
    "snail": plain_pixelsnail,
}
