"""Models that people have, before and after ``vqfast.accelerate``: ``python -m benchmarks.accelerate``.

Random weights at the published sizes (the configurations' defaults), ten seconds of audio or one image; then
layers. The quantiser alone gets what it got in the whole. Runs are interleaved; medians count.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in benchmarks.layer

import torch
from torch import nn

import vqfast
from benchmarks import record

ROUNDS = 5
SECONDS = 10
Case = tuple[nn.Module, Callable[[nn.Module], object], str]  # a model, how it tokenises, what quantises in it

# names in transformers, sample rate, arguments of encode
AUDIO = {
    "Encodec": ("encodec", "EncodecModel", "EncodecConfig", 24000, {"bandwidth": 24.0}),
    "Mimi": ("mimi", "MimiModel", "MimiConfig", 24000, {}),
    "DAC": ("dac", "DacModel", "DacConfig", 16000, {}),
    "X-Codec": ("xcodec", "XcodecModel", "XcodecConfig", 16000, {}),
    "Higgs Audio v2": (
        "higgs_audio_v2_tokenizer",
        "HiggsAudioV2TokenizerModel",
        "HiggsAudioV2TokenizerConfig",
        24000,
        {},
    ),
}
# names, shape of the input, arguments of encode
IMAGES = {
    "Chameleon": ("chameleon", "ChameleonVQVAE", "ChameleonVQVAEConfig", (1, 3, 512, 512), {}),
    "Emu3": ("emu3", "Emu3VQVAE", "Emu3VQVAEConfig", (1, 3, 256, 256), {"image_sizes": [(256, 256)]}),
    "Janus": ("janus", "JanusVQVAE", "JanusVQVAEConfig", (1, 3, 384, 384), {}),
    "GLM-Image": ("glm_image", "GlmImageVQVAE", "GlmImageVQVAEConfig", (1, 1536, 32, 32), {}),
}


def transformers(name: str) -> Case:
    """One of the models above."""
    module, model_name, config_name, size, options = (AUDIO | IMAGES)[name]
    package = f"transformers.models.{module}"
    config = getattr(import_module(f"{package}.configuration_{module}"), config_name)()
    model = getattr(import_module(f"{package}.modeling_{module}"), model_name)(config)
    x = torch.randn(size if name in IMAGES else (1, 1, SECONDS * size))
    part = "quantize.forward" if name in IMAGES else "quantizer.encode"
    part = "quantizer.forward" if name == "DAC" else part
    return model, lambda model: model.encode(x, **options), part


def diffusers(name: str) -> Case:
    """VQModel in the sizes of CompVis/ldm-celebahq-256; its own ``encode`` stops before the search."""
    sizes = {"block_out_channels": (128, 256, 512), "layers_per_block": 2, "num_vq_embeddings": 8192}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    x = torch.randn(1, 3, 256, 256)
    model = getattr(import_module("diffusers"), name)(**sizes, **blocks)
    return model, lambda model: model.quantize(model.encode(x).latents), "quantize.forward"


def vector_quantize_pytorch(name: str) -> Case:
    """A layer by itself."""
    options = {"VectorQuantize": {}, "ResidualVQ": {"num_quantizers": 8}}[name]
    x = torch.randn(4, 750, 128)
    layer = getattr(import_module("vector_quantize_pytorch"), name)(dim=128, codebook_size=1024, **options)
    return layer, lambda layer: layer(x), "forward"


CASES = {
    **dict.fromkeys(AUDIO | IMAGES, transformers),
    "VQModel": diffusers,
    "VectorQuantize": vector_quantize_pytorch,
    "ResidualVQ": vector_quantize_pytorch,
}


def build(name: str) -> Case:
    """With random codes, which some models leave at zero."""
    torch.manual_seed(0)
    model, encode, part = CASES[name](name)
    for key, tensor in model.state_dict().items():
        if key.endswith((".embed", ".embed_sum")):
            tensor.normal_()
    return model.eval(), encode, part


def heard(model: nn.Module, encode: Callable, part: str) -> Callable[[], object]:
    """The quantiser alone, called as ``encode`` calls it."""
    path, _, method = part.rpartition(".")
    module, calls = model.get_submodule(path), []
    setattr(module, method, lambda *args, **kwargs: calls.append((args, kwargs)) or original(*args, **kwargs))
    original = getattr(type(module), method).__get__(module)
    encode(model)
    delattr(module, method)
    ((args, kwargs),) = calls
    return lambda: getattr(module, method)(*args, **kwargs)


def seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@torch.no_grad()
def measure() -> dict[str, object]:
    """All models that the installed libraries have."""
    rows = []
    for name in CASES:
        try:
            model, encode, part = build(name)
        except ImportError as error:
            print(f"{name} is left out: {' '.join(str(error).split())[:80]}")
            continue
        alone = heard(model, encode, part)
        tasks = {"encode": lambda model=model, encode=encode: encode(model), "quantiser": alone}
        row = {"model": name, **{task: {"before": [], "after": []} for task in tasks}}
        for turn in range(ROUNDS + 1):  # the first warms up
            for state in ("before", "after"):
                report = vqfast.accelerate(model, restore=state == "before")
                for task, call in tasks.items():
                    row[task][state] += [seconds(call)] if turn else []
        row["size"] = report.replaced[0][2:4]
        rows.append(row)
        print(line(row), flush=True)
    return {"rows": rows}


def line(row: dict) -> str:
    """A row for people."""
    size = "K = {}, D = {}".format(*row["size"])
    texts = []
    for task in ("encode", "quantiser"):
        before, after = (statistics.median(row[task][state]) * 1e3 for state in ("before", "after"))
        texts.append(f"{before:.3g} ms | {after:.3g} ms | {before / after:.1f}x")
    return f"| {row['model']} | {size} | {' | '.join(texts)} |"


def table(path: Path) -> str:
    """The record as a Markdown table."""
    rows = json.loads(path.read_text())["rows"]
    head = (
        "| model | codebook | encode, before | after | | quantiser alone, before | after | |\n" + "|---" * 8
    )
    return f"{head}|\n" + "\n".join(map(line, rows))


if __name__ == "__main__":
    record.write("accelerate", measure(), table)
