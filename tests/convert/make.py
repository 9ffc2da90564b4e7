"""Writes what a class of another library computes, as data: ``python -m tests.convert.make NAME CHECKOUT``.

NAME is one of ``CASES`` or ``keras`` (which needs tensorflow), CHECKOUT the folder of the class's repository.
The class is read from its file and trained for a few steps. Then ``states/NAME.safetensors`` gets its state,
an input, and the results of its next training step: loss, indices and codebook. None of its code is kept.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

STATES = Path(__file__).parent / "states"
K, D, BETA, DECAY = 16, 4, 0.25, 0.9
RATE = 8.0  # of gradient steps
TAMING = "taming/modules/vqvae/quantize.py"


def classes(file: Path, **names: Any) -> SimpleNamespace:
    """The classes that a Python file or a notebook defines, with ``names`` as what they import."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        cells = (cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")
        lines = "\n".join("".join(cell["source"]) for cell in cells).splitlines()
        text = "\n".join(line for line in lines if not line.startswith(("%", "!")))
    tree = ast.parse(text)
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef)]  # nothing else is run
    names |= {"torch": torch, "nn": nn, "F": F, "np": np}
    exec(compile(tree, str(file), "exec"), names)
    return SimpleNamespace(**names)


def zalando(checkout: Path) -> nn.Module:
    return classes(checkout / "vq-vae.ipynb").VectorQuantizer(K, D, BETA)


def zalando_ema(checkout: Path) -> nn.Module:
    return classes(checkout / "vq-vae.ipynb").VectorQuantizerEMA(K, D, BETA, DECAY)


def misha_laskin(checkout: Path) -> nn.Module:
    return classes(checkout / "models/quantizer.py", device="cpu").VectorQuantizer(K, D, BETA)


def taming(checkout: Path, legacy: bool = False) -> nn.Module:
    from einops import rearrange

    return classes(checkout / TAMING, rearrange=rearrange).VectorQuantizer2(K, D, BETA, legacy=legacy)


def taming_ema(checkout: Path) -> nn.Module:
    from einops import rearrange

    found = classes(checkout / TAMING, rearrange=rearrange)
    # its constructor reads names that it doesn't define
    module = found.EMAVectorQuantizer.__new__(found.EMAVectorQuantizer)
    nn.Module.__init__(module)
    module.codebook_dim, module.num_tokens, module.beta, module.remap = D, K, BETA, None
    module.embedding = found.EmbeddingEMA(K, D, DECAY)
    return module


def rosinality(checkout: Path) -> nn.Module:
    alone = SimpleNamespace(all_reduce=lambda tensor: tensor)
    return classes(checkout / "vqvae.py", dist_fn=alone).Quantize(D, K, DECAY)


def images(generator: torch.Generator, centres: Tensor) -> Tensor:
    """Vectors near ``centres (K, D)``, each of them met: ``(4, D, 6, 6)``."""
    near = torch.arange(4 * 36) % len(centres)
    vectors = centres[near] + 0.3 * torch.randn(len(near), D, generator=generator)
    return vectors.view(4, 6, 6, D).movedim(-1, 1).contiguous()


# By name: how a class is built, how loss and indices are read from what it returns, and its codebook's name.
# The classes of zalando return indices one-hot.
CASES: dict[str, tuple[Callable[[Path], nn.Module], Callable[[Any], tuple[Tensor, Tensor]], str]] = {
    "zalando": (zalando, lambda out: (out[0], out[3].argmax(1)), "_embedding.weight"),
    "zalando-ema": (zalando_ema, lambda out: (out[0], out[3].argmax(1)), "_embedding.weight"),
    "misha-laskin": (misha_laskin, lambda out: (out[0], out[4]), "embedding.weight"),
    "taming": (taming, lambda out: (out[1], out[2][2]), "embedding.weight"),
    "taming-legacy": (lambda path: taming(path, True), lambda out: (out[1], out[2][2]), "embedding.weight"),
    "taming-ema": (taming_ema, lambda out: (out[1], out[2][2]), "embedding.weight"),
    "rosinality": (rosinality, lambda out: (out[1], out[2]), "embed"),
}


def step(module: nn.Module, z: Tensor, read: Callable[[Any], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Loss and indices of one training step of the module, with its loss alone."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    loss, indices = read(module(z))
    gradients = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else []
    for weight, gradient in zip(weights, gradients, strict=False):
        if gradient is not None:
            weight.data -= RATE * gradient
    return loss.detach(), indices.flatten()


def torch_case(name: str, checkout: Path) -> dict[str, Tensor]:
    """State, input and next step of a class of PyTorch."""
    build, read, codebook = CASES[name]
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    module, centres = build(checkout).train(), torch.randn(K, D, generator=generator)
    start = module.state_dict()
    start[codebook].copy_(centres.T if name == "rosinality" else centres)
    for counts in start.keys() & {"cluster_size", "embedding.cluster_size", "_ema_cluster_size"}:
        start[counts].fill_(1)
    for sums in start.keys() & {"embed_avg", "embedding.embed_avg", "_ema_w"}:
        start[sums].copy_(start[codebook])
    axes = (0, 2, 3, 1) if name == "rosinality" else (0, 1, 2, 3)
    for _ in range(5):
        step(module, images(generator, centres).permute(axes).contiguous(), read)
    state = {key: value.detach().clone() for key, value in module.state_dict().items()}
    z = images(generator, centres).permute(axes).contiguous()
    loss, indices = step(module, z, read)
    after = module.state_dict()[codebook]
    after = after.T if name == "rosinality" else after
    results = {"z": z, "loss": loss, "indices": indices, "codebook": after.detach().clone().contiguous()}
    return {f"state.{key}": value for key, value in state.items()} | results


def keras_case(checkout: Path) -> dict[str, Tensor]:
    """The same of the layer of Keras' example."""
    import tensorflow as tf

    found = classes(checkout / "examples/generative/vq_vae.py", tf=tf, layers=tf.keras.layers)
    generator = torch.Generator().manual_seed(0)
    layer, centres = found.VectorQuantizer(K, D, BETA), torch.randn(K, D, generator=generator)
    layer.embeddings.assign(centres.T.numpy())
    for _ in range(3):
        state = layer.embeddings.numpy()
        z = images(generator, centres).movedim(1, -1).contiguous()
        with tf.GradientTape() as tape:
            layer(tf.constant(z.numpy()))
            loss = sum(layer.losses)
        indices = layer.get_code_indices(tf.constant(z.view(-1, D).numpy())).numpy()
        layer.embeddings.assign_sub(RATE * tape.gradient(loss, layer.embeddings))
    after = layer.embeddings.numpy().T.copy()
    arrays = {"state.embeddings_vqvae": state, "loss": loss.numpy(), "indices": indices, "codebook": after}
    return {"z": z} | {name: torch.tensor(array) for name, array in arrays.items()}


def main(name: str, checkout: Path) -> None:
    tensors = keras_case(checkout) if name == "keras" else torch_case(name, checkout)
    STATES.mkdir(exist_ok=True)
    save_file(tensors, STATES / f"{name}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
