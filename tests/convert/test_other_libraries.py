"""Checkpoints of other libraries' classes: a converted layer goes on as the class itself did.

The files in ``states`` are made by ``tests/convert/make.py``, each with the class of its library.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import vqfast
from tests.convert.make import BETA, DECAY, RATE, STATES, D, K

EMA = {"beta": BETA, "decay": DECAY}
# Options of the layer, and a factor of its loss: two of the classes weigh the codebook's term by beta.
CASES = {
    "zalando": ({"beta": BETA}, 1.0),
    "zalando-ema": (EMA, 1.0),
    "misha-laskin": ({"beta": 1 / BETA}, BETA),
    "taming": ({"beta": BETA}, 1.0),
    "taming-legacy": ({"beta": 1 / BETA}, BETA),
    "taming-ema": (EMA, 1.0),
    "rosinality": ({"beta": 1.0, "decay": DECAY, "channel_dim": -1}, 1.0),
    "keras": ({"beta": BETA, "channel_dim": -1}, 1.0),
}


def stored(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state of a class, and an input with what its next training step gave."""
    tensors = load_file(STATES / f"{name}.safetensors")
    state = {
        key.removeprefix("state."): tensors.pop(key) for key in list(tensors) if key.startswith("state.")
    }
    return state, tensors


@pytest.mark.parametrize("name", CASES)
def test_the_next_training_step_is_that_of_the_class(name):
    options, scale = CASES[name]
    state, expected = stored(name)
    layer = vqfast.VQLayer(K, D, **options)
    layer.load_state_dict(vqfast.convert_state_dict(state, layer))
    assert torch.equal(layer.encode(expected["z"]).flatten(), expected["indices"])
    output = layer(expected["z"])
    loss = scale * output.loss
    assert torch.equal(output.indices.flatten(), expected["indices"])
    torch.testing.assert_close(loss.detach(), expected["loss"], rtol=1e-5, atol=0)
    if layer.decay is None:
        (gradient,) = torch.autograd.grad(loss, layer.codebook)
        after = layer.codebook.detach() - RATE * gradient
    else:
        after = layer.codebook
    moved = (expected["codebook"] - vqfast.convert_state_dict(state, layer)["codebook"]).abs().max()
    assert moved > 0.01
    torch.testing.assert_close(after, expected["codebook"], rtol=1e-5, atol=1e-5)
