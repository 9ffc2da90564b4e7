"""Layers and priors as graphs: traced, exported, compiled ahead of time; scripted never."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests.transforms.model_cases import MODELS
from vqfast.priors.base import CausalPrior


@pytest.fixture(params=MODELS)
def model(request) -> tuple[nn.Module, tuple[Tensor, ...]]:
    module, x = MODELS[request.param]()
    given = (x,)
    if isinstance(module, CausalPrior) and module.num_classes:
        given = x, torch.ones(1, dtype=torch.int64), torch.ones(1, 2, 3, 3, dtype=torch.float64)
    return module.double(), given


def twice(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A batch of another size."""
    return tuple(torch.cat([value, value.flip(0)]) for value in given)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of checks, that look at shapes
def test_trace_computes_the_same_for_other_batches(model) -> None:
    module, given = model
    traced, file = torch.jit.trace(module, given), io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for arguments in (given, twice(given)):
        torch.testing.assert_close(tree_leaves(loaded(*arguments)), tree_leaves(module(*arguments)))


def test_script_is_refused_by_name(model) -> None:
    with pytest.raises(TypeError, match=r"that TorchScript doesn't know; use torch\.compile, torch\.export"):
        torch.jit.script(model[0])


def test_export_computes_the_same(model) -> None:
    module, given = model
    exported = torch.export.export(module, given).module()
    torch.testing.assert_close(tree_leaves(exported(*given)), tree_leaves(module(*given)))
