import copy
import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import vqfast
from tests.accelerate.compare import curve, nearest, same, searches, tensors

pytest.importorskip("transformers", reason="transformers is not installed")
SIZES = {"codebook_size": 64, "codebook_dim": 16, "hidden_size": 24}
IMAGE_SIZES = {"num_embeddings": 64, "embed_dim": 16, "num_patches": 4, "codebook_size": 64}

# class, sizes, method, shape of its input
CASES = {
    "encodec": ("EncodecEuclideanCodebook", SIZES, "encode", (2, 30, 16)),
    "mimi": ("MimiEuclideanCodebook", SIZES, "encode", (2, 30, 16)),
    "xcodec": ("XcodecEuclideanCodebook", SIZES, "encode", (2, 30, 16)),
    "higgs_audio_v2_tokenizer": ("HiggsAudioV2TokenizerEuclideanCodebook", SIZES, "encode", (2, 30, 16)),
    "dac": ("DacVectorQuantize", SIZES, "forward", (2, 24, 30)),
    "emu3": ("Emu3VQVAEVectorQuantizer", IMAGE_SIZES, "forward", (2, 3, 16, 4, 5)),
    "chameleon": ("ChameleonVQVAEVectorQuantizer", IMAGE_SIZES, "forward", (2, 16, 4, 5)),
    "janus": ("JanusVQVAEVectorQuantizer", IMAGE_SIZES, "forward", (2, 16, 4, 5)),
    "glm_image": ("GlmImageVQVAEVectorQuantizer", IMAGE_SIZES, "forward", (2, 16, 4, 5)),
}


@pytest.fixture(scope="module", autouse=True)
def torchaudio():
    """Higgs Audio's file imports it; its quantiser doesn't need it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchaudio", ModuleType("torchaudio"))
        yield


def quantiser(name: str) -> nn.Module:
    """With random codes."""
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    made = getattr(module, CASES[name][0])(SimpleNamespace(**CASES[name][1]))
    codes = made.state_dict()
    for key in ("embed", "embed_sum", "embedding.weight", "codebook.weight"):
        if key in codes:
            codes[key].normal_()
    return made


@pytest.mark.parametrize("name", CASES)
def test_quantisers(name):
    _, _, method, shape = CASES[name]
    fast = same(quantiser(name), [torch.randn(shape)] * 2, lambda module, z: getattr(module, method)(z))
    (entry,) = vqfast.accelerate(fast).replaced
    assert entry == ("", CASES[name][0], 64, 16, "")


@pytest.mark.parametrize("name", CASES)
def test_half_precision(name):
    _, _, method, shape = CASES[name]
    slow = quantiser(name).bfloat16()
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    x = torch.randn(shape).bfloat16()
    ours, theirs = (tensors(getattr(module, method)(x)) for module in (fast, slow))
    assert [(y.dtype, y.shape) for y in ours] == [(y.dtype, y.shape) for y in theirs]


def test_codes_are_those_of_float64_where_float32_products_cancel():
    slow = quantiser("encodec")
    slow.embed += 100
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    x = torch.randn(4096, 16) + 100
    truth = nearest(x, slow.embed)
    assert torch.equal(fast.quantize(x), truth)
    assert (slow.quantize(x) != truth).sum() > 10  # theirs is the side that errs


def test_ten_steps_give_the_same_curve():
    slow = quantiser("chameleon")
    fast = copy.deepcopy(slow)
    vqfast.accelerate(fast)
    ours, theirs = (
        curve(module, lambda out, z: (out[0] - z).square().mean() + out[1], (4, 16, 4, 5))
        for module in (fast, slow)
    )
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_accelerating_fills_no_cache_of_a_mimi_that_gets_its_weights_later():
    fast = quantiser("mimi")
    vqfast.accelerate(fast)
    other = quantiser("mimi")
    fast.load_state_dict(other.state_dict())
    x = torch.randn(30, 16)
    assert torch.equal(fast.quantize(x), other.quantize(x))


def models() -> dict[str, tuple[nn.Module, int]]:
    """Small ones, and how many codebooks each has."""
    from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

    encodec = EncodecConfig(num_filters=4, hidden_size=16, codebook_size=64, target_bandwidths=[4.5])
    dac = DacConfig(encoder_hidden_size=8, decoder_hidden_size=16, n_codebooks=3, codebook_size=64)
    return {"encodec": (EncodecModel(encodec), 10), "dac": (DacModel(dac), 3)}


@pytest.mark.parametrize("name", ["encodec", "dac"])
def test_whole_models(name):
    slow, codebooks = models()[name]
    for key, codes in slow.state_dict().items():
        if key.endswith((".embed", "codebook.weight")):
            codes.normal_()
    fast = copy.deepcopy(slow.eval())
    assert len(vqfast.accelerate(fast).replaced) == codebooks
    x = torch.randn(1, 1, 16384)
    ours, searched = searches(fast.encode, x)
    assert searched == codebooks
    assert torch.equal(ours.audio_codes, slow.encode(x).audio_codes)
