"""Figures of trained models, and work that doesn't fit the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vqfast.models import VQVAE
from vqfast.pipeline import (
    CodeGrids,
    Run,
    bits_per_code,
    coding,
    measure_reconstruction,
    reopen_parts,
    stage_codes,
)
from vqfast.pipeline.coding import decoded, encoded
from vqfast.priors.base import CausalPrior


def test_reconstruction(trained: Run, vqvae: VQVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coding, "BATCH", 4)
    images = reopen_parts(trained)["held-out"]
    figures = measure_reconstruction(vqvae, images)
    x, indices = images.batch(range(15)), stage_codes(trained, "codes/held-out").all()[0][0]
    outputs = torch.cat(list(decoded(vqvae, encoded(vqvae, images), range(15))))
    assert outputs.shape == x.shape and outputs.min() >= 0 and outputs.max() <= 1
    mse = F.mse_loss(outputs.double(), x.double()).item()
    p = np.bincount(indices.flatten(), minlength=8) / indices.numel()
    expected = {
        "mse": mse,
        "psnr": 10 * np.log10(1 / mse),
        "perplexity": np.exp(-sum(q * np.log(q) for q in p if q)),
        "codes_in_use": np.mean(p > 0),
    }
    assert list(figures) == list(expected)
    np.testing.assert_allclose(list(figures.values()), list(expected.values()), rtol=1e-5)


def test_an_item_is_decoded_with_the_same_others_whichever_are_asked_for(
    trained: Run, vqvae: VQVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bits of a convolution may depend on the batch, and files must not."""
    codes = stage_codes(trained, "codes/held-out")
    monkeypatch.setattr(coding, "BATCH", 4)
    monkeypatch.setattr(
        coding,
        "decode_items",
        lambda vqvae, grids, labels, batch, temperature: torch.tensor(
            [[n, batch.start, batch.stop] for n in batch]
        ),
    )
    whole = torch.cat(list(decoded(vqvae, codes, range(15))))
    assert whole[:, 0].tolist() == list(range(15))
    for first, end in [(0, 1), (2, 9), (14, 15), (3, 4)]:
        part = torch.cat(list(decoded(vqvae, codes, range(first, end))))
        assert torch.equal(part, whole[first:end])


@torch.no_grad()
def test_bits_per_code(trained: Run, prior: CausalPrior, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = stage_codes(trained, "codes/train")
    (indices,), labels = codes.all()
    monkeypatch.setattr(coding, "BATCH", 7)
    for label in (None, 2):
        p = prior(indices, labels if label is None else torch.full((45,), label)).softmax(1)
        expected = -p.gather(1, indices.unsqueeze(1)).log2().flatten(1).mean(1)
        bits = bits_per_code([prior], codes, labels=label)
        assert bits.shape == (45, 1)
        np.testing.assert_allclose(bits[:, 0], expected, rtol=1e-5)
    short = CodeGrids(45, "", lambda numbers: ([indices[:2]], labels[:2]))
    with pytest.raises(ValueError, match="bits per code: 14 items came for 45 numbers"):
        bits_per_code([prior], short)
    unlabelled = CodeGrids(45, "", lambda numbers: ([indices[numbers.start : numbers.stop]], None))
    with pytest.raises(
        ValueError, match=r"no labels; want labels in 0\.\.2 \(--label\), since the prior has classes"
    ):
        bits_per_code([prior], unlabelled)
    with pytest.raises(ValueError, match=r"labels is 3; want an integer in 0\.\.2"):
        bits_per_code([prior], codes, labels=3)


def test_a_batch_too_large_for_memory_is_divided(
    trained: Run, vqvae: VQVAE, prior: CausalPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding, decoding and likelihood, where there is room for five at a time."""
    images = reopen_parts(trained)["held-out"]

    def results() -> list[torch.Tensor]:
        codes = encoded(vqvae, images)
        outputs = torch.cat(list(decoded(vqvae, codes, range(15))))
        figures = torch.tensor(list(measure_reconstruction(vqvae, images).values()))
        return [codes.all()[0][0], outputs, bits_per_code([prior], codes), figures]

    def limited(method: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(x: torch.Tensor, *rest: Any) -> torch.Tensor:
            if len(x) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return method(x, *rest)

        return call

    expected = results()
    for model, name in ((vqvae, "encode"), (vqvae, "decode"), (prior, "bits_per_code")):
        monkeypatch.setattr(model, name, limited(getattr(model, name)))
    for result, wanted in zip(results(), expected, strict=True):
        torch.testing.assert_close(result, wanted)
