"""Small quantisers with random codes, as the installed versions of other libraries have them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

SIZES = {"codebook_size": 64, "codebook_dim": 16, "hidden_size": 24}
STAGES = {**SIZES, "num_quantizers": 4, "frame_rate": 10, "n_codebooks": 4, "quantizer_dropout": 0.5}
STAGES["vector_quantization_hidden_dimension"] = 16
IMAGE_SIZES = {"num_embeddings": 64, "embed_dim": 16, "num_patches": 4, "codebook_size": 64}

# class, sizes, method, shape of its input
CASES = {
    "encodec": ("EncodecEuclideanCodebook", SIZES, "encode", (2, 30, 16)),
    "mimi": ("MimiEuclideanCodebook", SIZES, "encode", (2, 30, 16)),
    "xcodec": ("XcodecEuclideanCodebook", SIZES, "encode", (2, 30, 16)),
    "higgs_audio_v2_tokenizer": ("HiggsAudioV2TokenizerEuclideanCodebook", SIZES, "encode", (2, 30, 16)),
    "wavtokenizer": ("WavTokenizerEuclideanCodebook", SIZES, "encode", (2, 30, 16)),
    "dac": ("DacVectorQuantize", SIZES, "forward", (2, 24, 30)),
    "emu3": ("Emu3VQVAEVectorQuantizer", IMAGE_SIZES, "forward", (2, 3, 16, 4, 5)),
    "chameleon": ("ChameleonVQVAEVectorQuantizer", IMAGE_SIZES, "forward", (2, 16, 4, 5)),
    "janus": ("JanusVQVAEVectorQuantizer", IMAGE_SIZES, "forward", (2, 16, 4, 5)),
    "glm_image": ("GlmImageVQVAEVectorQuantizer", IMAGE_SIZES, "forward", (2, 16, 4, 5)),
}
# all stages of one; shape of the input; what makes it take fewer stages
RESIDUAL = {
    "encodec": ("EncodecResidualVectorQuantizer", (2, 16, 30), 0.12),
    "mimi": ("MimiResidualVectorQuantizer", (2, 24, 30), 2),
    "xcodec": ("XcodecResidualVectorQuantization", (2, 16, 30), 0.12),
    "higgs_audio_v2_tokenizer": ("HiggsAudioV2TokenizerResidualVectorQuantization", (2, 24, 30), 0.12),
}
DAC_STAGES = ("DacResidualVectorQuantizer", "DacResidualVectorQuantize")  # since 5.0, and before
VQ_PYTORCH = {
    "VectorQuantize": {},
    "VectorQuantize, cosine": {"use_cosine_sim": True},
    "ResidualVQ": {"num_quantizers": 3},
    "ResidualVQ of beams": {"num_quantizers": 3, "beam_size": 2},
    "ResidualVQ, implicit codebooks": {"num_quantizers": 3, "implicit_neural_codebook": True},
    "GroupedResidualVQ": {"num_quantizers": 2, "groups": 2},
    "SimVQ": {},
}


class Foreign(NamedTuple):
    """How one is built, the method that takes its input, and the input's shape."""

    build: Callable[[], nn.Module]
    method: str
    shape: tuple[int, ...]


def has(name: str, class_name: str) -> bool:
    """Whether the installed version of transformers has a class."""
    try:
        return hasattr(importlib.import_module(f"transformers.models.{name}.modeling_{name}"), class_name)
    except ImportError:
        return False


def built(name: str, class_name: str, sizes: dict[str, Any]) -> nn.Module:
    """One of transformers."""
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    made = getattr(module, class_name)(SimpleNamespace(**sizes))
    for key, codes in made.state_dict().items():
        if key.endswith(("embed", "embed_sum", "embedding.weight", "codebook.weight")):
            codes.normal_()
    return made


def _transformers() -> Iterator[tuple[str, Foreign]]:
    for name, (class_name, sizes, method, shape) in CASES.items():
        yield class_name, Foreign(lambda n=name, c=class_name, s=sizes: built(n, c, s), method, shape)
    for name, (class_name, shape, _) in RESIDUAL.items():
        yield class_name, Foreign(lambda n=name, c=class_name: built(n, c, STAGES), "encode", shape)
    sizes = {**STAGES, "codebook_dim": 8}
    for class_name in DAC_STAGES:
        yield class_name, Foreign(lambda c=class_name: built("dac", c, sizes), "forward", (2, 24, 30))


def _diffusers() -> Iterator[tuple[str, Foreign]]:
    def build() -> nn.Module:
        from diffusers.models.autoencoders.vae import VectorQuantizer

        made = VectorQuantizer(64, 16, beta=0.25)
        nn.init.normal_(made.embedding.weight)
        return made

    yield "VectorQuantizer", Foreign(build, "forward", (2, 16, 4, 5))


def _vq_pytorch() -> Iterator[tuple[str, Foreign]]:
    def build(name: str, options: dict[str, Any]) -> nn.Module:
        library = importlib.import_module("vector_quantize_pytorch")
        return getattr(library, name.split()[0].strip(","))(dim=16, codebook_size=64, **options)

    for name, options in VQ_PYTORCH.items():
        yield name, Foreign(lambda n=name, o=options: build(n, o), "forward", (2, 30, 16))


LIBRARIES = {
    "transformers": dict(_transformers()),
    "diffusers": dict(_diffusers()),
    "vector-quantize-pytorch": dict(_vq_pytorch()),
}


def sample(foreign: Foreign) -> Tensor:
    """An input."""
    return torch.randn(foreign.shape)
