"""Models that people have, as they are and after ``vqfast.accelerate``: tokenising, and the quantiser alone.

Random weights at the published sizes, ten seconds of audio or one image; then
layers by themselves. The quantiser alone gets what the model's encoder makes of a new input. Floor: the
products, convolutions and distances of the model as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import vqfast
from benchmarks.core import Call, Case, Outputs, counted
from benchmarks.machine import DEVICE

SECONDS = 10


class Model(NamedTuple):
    """A model, its input's shape, how it tokenises one, and which of its methods quantises."""

    module: nn.Module
    shape: tuple[int, ...]
    encode: Callable[[nn.Module, Tensor], object]
    part: str


# names in transformers, sample rate, arguments of encode
AUDIO: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "Encodec": ("encodec", "EncodecModel", 24000, {"bandwidth": 24.0}),
    "Mimi": ("mimi", "MimiModel", 24000, {}),
    "DAC": ("dac", "DacModel", 16000, {}),
    "X-Codec": ("xcodec", "XcodecModel", 16000, {}),
    "Higgs Audio v2": ("higgs_audio_v2_tokenizer", "HiggsAudioV2TokenizerModel", 24000, {}),
}
# of bosonai/higgs-audio-v2-tokenizer, where the configuration's defaults are others, and don't fit each other
RATIOS = [8, 5, 4, 2, 3]
SIZES: dict[str, dict[str, Any]] = {
    "Higgs Audio v2": {
        "acoustic_model_config": {"downsampling_ratios": RATIOS, "upsampling_ratios": RATIOS},
        "target_bandwidths": [0.5, 1, 1.5, 2],
    }
}
# names, shape of the input, arguments of encode
IMAGES: dict[str, tuple[str, str, tuple[int, ...], dict[str, Any]]] = {
    "Chameleon": ("chameleon", "ChameleonVQVAE", (1, 3, 512, 512), {}),
    "Emu3": ("emu3", "Emu3VQVAE", (1, 3, 256, 256), {"image_sizes": [(256, 256)]}),
    "Janus": ("janus", "JanusVQVAE", (1, 3, 384, 384), {}),
    "GLM-Image": ("glm_image", "GlmImageVQVAE", (1, 1536, 32, 32), {}),
}


def transformers(name: str) -> Model:
    """One of the models above."""
    module, class_name, size, options = (AUDIO | IMAGES)[name]
    package = f"transformers.models.{module}"
    config_name = f"{class_name.removesuffix('Model')}Config"
    config = getattr(import_module(f"{package}.configuration_{module}"), config_name)
    model = getattr(import_module(f"{package}.modeling_{module}"), class_name)(config(**SIZES.get(name, {})))
    part = "quantize.forward" if name in IMAGES else "quantizer.encode"
    part = "quantizer.forward" if name == "DAC" else part
    shape = size if name in IMAGES else (1, 1, SECONDS * size)
    return Model(model, shape, lambda model, x: model.encode(x, **options), part)


def diffusers(name: str) -> Model:
    """VQModel in the sizes of CompVis/ldm-celebahq-256; its own ``encode`` stops before the search."""
    sizes = {"block_out_channels": (128, 256, 512), "layers_per_block": 2, "num_vq_embeddings": 8192}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    model = getattr(import_module("diffusers"), name)(**sizes, **blocks)
    encode = lambda model, x: model.quantize(model.encode(x).latents)  # noqa: E731
    return Model(model, (1, 3, 256, 256), encode, "quantize.forward")


def layer(name: str, shape: tuple[int, ...] = (4, 750, 128), codebook_size: int = 1024) -> Model:
    """A layer of vector-quantize-pytorch."""
    options = {"VectorQuantize": {}, "ResidualVQ": {"num_quantizers": 8}}[name]
    build = getattr(import_module("vector_quantize_pytorch"), name)
    module = build(dim=shape[-1], codebook_size=codebook_size, **options)
    return Model(module, shape, lambda module, x: module(x), "forward")


@cache
def built(make: Callable[[], Model], fast: bool) -> Model:
    """With random codes, which some models leave at zero; the same weights every time."""
    torch.manual_seed(0)
    model = make()
    for key, tensor in model.module.state_dict().items():
        if key.endswith((".embed", ".embed_sum")):
            tensor.normal_()
    model.module.to(DEVICE).eval()
    if fast:
        vqfast.accelerate(model.module)
    return model


def whole(make: Callable[[], Model], fast: bool) -> Call:
    """All of tokenising."""
    model = built(make, fast)
    return torch.no_grad()(lambda x: model.encode(model.module, x))


def alone(make: Callable[[], Model], fast: bool) -> Call:
    """The quantiser's part of it, of its arguments."""
    model = built(make, fast)
    path, _, method = model.part.rpartition(".")
    call = getattr(model.module.get_submodule(path), method)
    return torch.no_grad()(lambda given: call(*given[0], **given[1]))


def random_input(make: Callable[[], Model]) -> Tensor:
    """A model's."""
    return torch.randn(built(make, False).shape, device=DEVICE)


@torch.no_grad()
def arguments(make: Callable[[], Model]) -> tuple[tuple, dict[str, Any]]:
    """What the quantiser is called with as a new input is tokenised."""
    model = built(make, False)
    path, _, method = model.part.rpartition(".")
    module, calls = model.module.get_submodule(path), []
    original = getattr(module, method)
    setattr(module, method, lambda *args, **kwargs: calls.append((args, kwargs)) or original(*args, **kwargs))
    model.encode(model.module, random_input(make))
    delattr(module, method)
    (given,) = calls
    return given


def check(original: Callable[[], Call], data: object, outputs: Outputs) -> None:
    """The original's codes, but for near ties, in tensors of the same shapes."""
    wanted = _tensors(original()(data))
    for name, output in outputs.items():
        for got, want in zip(_tensors(output), wanted, strict=True):
            assert got.shape == want.shape, f"{name} returns shape {got.shape}, not {want.shape}"
            if not want.is_floating_point():
                agree = (got == want).double().mean()
                assert agree > 0.99, f"{name}: {agree:.1%} of the codes agree"


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def cases(name: str, make: Callable[[], Model]) -> list[Case]:
    """The model as a whole, and its quantiser alone if that isn't all of it."""
    parts = [("tokenise", whole, random_input), ("quantiser alone", alone, arguments)]
    return [
        Case(
            name=f"{name}, {part}",
            shape={},
            contenders={"vqfast": partial(build, make, True), "as it was": partial(build, make, False)},
            data=partial(data, make),
            check=partial(check, partial(build, make, False)),
            floor=partial(counted, partial(build, make, False)),
            slow=() if name in QUICK else ["vqfast"],
        )
        for part, build, data in parts
        if make.func is not layer or build is whole
    ]


MODELS = {
    **{name: partial(transformers, name) for name in AUDIO | IMAGES},
    "VQModel": partial(diffusers, "VQModel"),
    "VectorQuantize": partial(layer, "VectorQuantize"),
    "ResidualVQ": partial(layer, "ResidualVQ"),
}
QUICK = ("Encodec", "VectorQuantize", "ResidualVQ")
CASES = [case for name, make in MODELS.items() for case in cases(name, make)]
