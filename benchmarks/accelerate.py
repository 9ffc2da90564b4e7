"""Models of other libraries, before and after ``vqfast.accelerate``: tokenising, and the quantiser alone.

Models have random weights at their published sizes, and take ten seconds of audio or one image; layers take
random vectors. "Quantiser alone" calls the quantiser with the arguments that the model gives it for a new
input. Floor: the products, convolutions and distances of the model as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import vqfast
from benchmarks.core import Call, Case, Outputs, counted
from benchmarks.machine import DEVICE

SECONDS = 10
QUICK = ("Encodec", "VectorQuantize", "ResidualVQ")  # the others only with --full


class Model(NamedTuple):
    """A model, its input's shape, how it tokenises one, and which of its methods quantises."""

    module: nn.Module
    shape: tuple[int, ...]
    encode: Callable[[Any, Tensor], object]
    part: str


Make = Callable[[], Model]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # of a call


class Source(NamedTuple):
    """Where transformers has a model, and how it is called."""

    module: str
    class_name: str
    shape: tuple[int, ...]
    part: str
    options: Mapping[str, Any] = MappingProxyType({})  # of ``encode``
    config: Mapping[str, Any] = MappingProxyType({})  # of the model's configuration


def _audio(rate: int) -> tuple[int, int, int]:
    return (1, 1, SECONDS * rate)


RATIOS = [8, 5, 4, 2, 3]
# the published sizes of bosonai/higgs-audio-v2-tokenizer; the configuration's defaults don't fit each other
HIGGS = {
    "acoustic_model_config": {"downsampling_ratios": RATIOS, "upsampling_ratios": RATIOS},
    "target_bandwidths": [0.5, 1, 1.5, 2],
}
ENCODE, FORWARD = "quantizer.encode", "quantize.forward"
SOURCES = {
    "Encodec": Source("encodec", "EncodecModel", _audio(24000), ENCODE, {"bandwidth": 24.0}),
    "Mimi": Source("mimi", "MimiModel", _audio(24000), ENCODE),
    "DAC": Source("dac", "DacModel", _audio(16000), "quantizer.forward"),
    "X-Codec": Source("xcodec", "XcodecModel", _audio(16000), ENCODE),
    "Higgs Audio v2": Source(
        "higgs_audio_v2_tokenizer", "HiggsAudioV2TokenizerModel", _audio(24000), ENCODE, {}, HIGGS
    ),
    "Chameleon": Source("chameleon", "ChameleonVQVAE", (1, 3, 512, 512), FORWARD),
    "Emu3": Source("emu3", "Emu3VQVAE", (1, 3, 256, 256), FORWARD, {"image_sizes": [(256, 256)]}),
    "Janus": Source("janus", "JanusVQVAE", (1, 3, 384, 384), FORWARD),
    "GLM-Image": Source("glm_image", "GlmImageVQVAE", (1, 1536, 32, 32), FORWARD),
}


def transformers(name: str) -> Model:
    """A model of transformers."""
    source = SOURCES[name]
    package = f"transformers.models.{source.module}"
    config_name = f"{source.class_name.removesuffix('Model')}Config"
    make_config = getattr(import_module(f"{package}.configuration_{source.module}"), config_name)
    make_model = getattr(import_module(f"{package}.modeling_{source.module}"), source.class_name)
    model = make_model(make_config(**source.config))
    return Model(model, source.shape, lambda model, x: model.encode(x, **source.options), source.part)


def diffusers(name: str) -> Model:
    """VQModel at the sizes of CompVis/ldm-celebahq-256; its own ``encode`` stops before the search."""
    sizes = {"block_out_channels": (128, 256, 512), "layers_per_block": 2, "num_vq_embeddings": 8192}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    model = getattr(import_module("diffusers"), name)(**sizes, **blocks)
    encode = lambda model, x: model.quantize(model.encode(x).latents)  # noqa: E731
    return Model(model, (1, 3, 256, 256), encode, FORWARD)


def layer(name: str, shape: tuple[int, ...] = (4, 750, 128), codebook_size: int = 1024) -> Model:
    """A layer of vector-quantize-pytorch."""
    options = {"VectorQuantize": {}, "ResidualVQ": {"num_quantizers": 8}}[name]
    build = getattr(import_module("vector_quantize_pytorch"), name)
    module = build(dim=shape[-1], codebook_size=codebook_size, **options)
    return Model(module, shape, lambda module, x: module(x), "forward")


@cache
def built(make: Make, fast: bool) -> Model:
    """The model with the same weights every time, and random codebooks, which some models leave at zero."""
    torch.manual_seed(0)
    model = make()
    for key, tensor in model.module.state_dict().items():
        if key.endswith((".embed", ".embed_sum")):
            tensor.normal_()
    model.module.to(DEVICE).eval()
    if fast:
        vqfast.accelerate(model.module)
    return model


def whole(make: Make, fast: bool) -> Call:
    """Tokenises with the whole model."""
    model = built(make, fast)
    return torch.no_grad()(lambda x: model.encode(model.module, x))


def alone(make: Make, fast: bool) -> Call:
    """Calls the quantiser with the arguments of ``arguments``."""
    model = built(make, fast)
    path, _, method = model.part.rpartition(".")
    call = getattr(model.module.get_submodule(path), method)
    return torch.no_grad()(lambda given: call(*given[0], **given[1]))


def random_input(make: Make) -> Tensor:
    """A random input of a model."""
    return torch.randn(built(make, False).shape, device=DEVICE)


@torch.no_grad()
def arguments(make: Make) -> Arguments:
    """The arguments that the model calls its quantiser with for a new input."""
    model = built(make, False)
    path, _, method = model.part.rpartition(".")
    module, original = model.module.get_submodule(path), getattr(model.module.get_submodule(path), method)
    calls: list[Arguments] = []

    def noting(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return original(*args, **kwargs)

    setattr(module, method, noting)
    model.encode(model.module, random_input(make))
    delattr(module, method)
    (given,) = calls
    return given


def check(original: Callable[[], Call], data: object, outputs: Outputs) -> None:
    """Shapes and codes equal the original's; 1 % of the codes may differ, for near ties."""
    wanted = _tensors(original()(data))
    for name, output in outputs.items():
        for got, want in zip(_tensors(output), wanted, strict=True):
            assert got.shape == want.shape, f"{name} returns shape {got.shape}, not {want.shape}"
            if not want.is_floating_point():
                agree = (got == want).double().mean()
                assert agree > 0.99, f"{name}: {agree:.1%} of the codes agree"


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def cases(name: str, make: Make) -> list[Case]:
    """The whole model, then its quantiser alone."""

    def case(part: str, build: Callable[[Make, bool], Call], data: Callable[[Make], Any]) -> Case:
        original = partial(build, make, False)
        return Case(
            name=f"{name}, {part}",
            shape={},
            contenders={"vqfast": partial(build, make, True), "as it was": original},
            data=partial(data, make),
            check=partial(check, original),
            floor=partial(counted, original),
            slow=() if name in QUICK else ["vqfast"],
        )

    return [case("tokenise", whole, random_input), case("quantiser alone", alone, arguments)]


MODELS: dict[str, Make] = {
    **{name: partial(transformers, name) for name in SOURCES},
    "VQModel": partial(diffusers, "VQModel"),
}
CASES = [case for name, make in MODELS.items() for case in cases(name, make)]
# a layer is its quantiser
CASES += [cases(name, partial(layer, name))[0] for name in ("VectorQuantize", "ResidualVQ")]
