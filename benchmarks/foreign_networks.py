"""Priors of public repositories, as ``program_of`` takes them: each is built by its own class, in small.

Each function imports its network from the repository's folder and returns it as a function of integer codes,
with what the repository's sampling loop does around it: scaling, one-hot vectors, a transposition.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

K = 8
NEXT = {"predicts": "next"}
Trial = dict[str, Any]  # arguments of program_of
TRIALS: dict[tuple[str, str], Callable[[], Trial]] = {}  # by repository and network


def trial(repository: str, network: str) -> Callable[[Callable[..., Trial]], Callable[..., Trial]]:
    """Registers a function that builds a network of a repository."""

    def register(build: Callable[..., Trial]) -> Callable[..., Trial]:
        TRIALS[repository, network] = build
        return build

    return register


def build(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """An object of a class of the repository that is imported from."""
    return getattr(import_module(module), name)(*args, **kwargs)


def scaled(codes: Tensor, num_embeddings: int = K) -> Tensor:
    """Codes as numbers from 0 to 1, with one channel."""
    return codes[:, None].float() / (num_embeddings - 1)


def of_scaled(network: nn.Module, num_embeddings: int = K, **options: Any) -> Trial:
    """A network of scaled codes, by default on a grid of 4 x 5."""
    call = lambda codes: network(scaled(codes, num_embeddings))  # noqa: E731
    return {"call": call, "num_embeddings": num_embeddings, "shape": (4, 5), **options}


@trial("ritheshkumar95/pytorch-vqvae", "GatedPixelCNN")
def _ritheshkumar95(module: str = "modules") -> Trial:
    network = build(module, "GatedPixelCNN", K, 8, 3, 3)  # takes square grids only
    return {"call": network, "num_embeddings": K, "shape": (5, 5), "num_classes": 3}


TRIALS["MishaLaskin/vqvae", "GatedPixelCNN"] = partial(_ritheshkumar95, "pixelcnn.models")


@trial("singh-hrituraj/PixelCNN-Pytorch", "PixelCNN")
def _singh() -> Trial:
    return of_scaled(build("Model", "PixelCNN", kernel=3, channels=8), 256)


@trial("jzbontar/pixelcnn-pytorch", "PixelCNN")
def _jzbontar() -> Trial:
    """The network of a script in Python 2, which trains; only the lines before training are run."""
    source = Path("main.py").read_text().split("print net")[0]
    names: dict[str, Any] = {"nn": nn}
    exec("class " + source.split("class ", 1)[1], names)
    return of_scaled(names["net"], 256)


@trial("rogertrullo/Gated-PixelCNN-Pytorch", "PixelCNN")
def _rogertrullo() -> Trial:
    with mock.patch.object(torch.Tensor, "cuda", lambda self: self):  # it has no option for a CPU
        return of_scaled(build("GatedPixelCNN", "PixelCNN", 2, 1, 8, Klevels=K))


@trial("jrbtaylor/conditional-pixelcnn", "PixelCNN")
def _jrbtaylor() -> Trial:
    network = build("model", "PixelCNN", 1, 3, 6, 2, K)
    call = lambda codes, labels: network(scaled(codes), F.one_hot(labels, 3).float())  # noqa: E731
    return {"call": call, "num_embeddings": K, "shape": (4, 5), "num_classes": 3}


@trial("j-min/PixelCNN", "PixelCNN")
def _j_min() -> Trial:
    network = build("models", "PixelCNN", 1, 8, K)
    call = lambda codes: network(scaled(codes))[:, 0].permute(0, 3, 1, 2)  # noqa: E731
    return {"call": call, "num_embeddings": K, "shape": (4, 5)}


@trial("EugenHotaj/pytorch-generative", "PixelCNN")
def _eugen_hotaj(name: str = "PixelCNN", **sizes: Any) -> Trial:
    network = build("pytorch_generative.models", name, 1, K, **sizes)
    return of_scaled(network, shape=(5, 5))  # ImageGPT takes square grids only


TRIALS["EugenHotaj/pytorch-generative", "GatedPixelCNN"] = partial(
    _eugen_hotaj, "GatedPixelCNN", n_gated=2, gated_channels=8
)
TRIALS["EugenHotaj/pytorch-generative", "PixelSNAIL"] = partial(
    _eugen_hotaj, "PixelSNAIL", n_channels=8, n_pixel_snail_blocks=1
)
TRIALS["EugenHotaj/pytorch-generative", "ImageGPT"] = partial(
    _eugen_hotaj, "ImageGPT", in_size=5, n_transformer_blocks=1
)


@trial("unixpickle/vq-vae-2", "PixelCNN with ChannelNorm")
def _unixpickle() -> Trial:
    module = "vq_vae_2.examples.mnist.model"
    return {"call": build(module, "Generator"), "num_embeddings": 32, "shape": (4, 5)}


@trial("unixpickle/vq-vae-2", "PixelCNN without norm")
def _unixpickle_without_norm() -> Trial:
    name = partial(build, "vq_vae_2.pixel_cnn")
    embedding, head = nn.Embedding(K, 8), nn.Conv2d(8, K, 1)
    stack = name("PixelCNN", name("PixelConvA", 8, 8), name("PixelConvB", 8), name("PixelConvB", 8))
    call = lambda codes: head(sum(stack(embedding(codes).permute(0, 3, 1, 2))))  # noqa: E731
    return {"call": call, "num_embeddings": K, "shape": (4, 5)}


@trial("rosinality/vq-vae-2-pytorch", "PixelSNAIL, bottom")
def _rosinality(module: str = "pixelsnail", **options: Any) -> Trial:
    sizes: dict[str, Any] = {"n_cond_res_block": 1, "cond_res_channel": 4, "n_out_res_block": 1}
    network = build(module, "PixelSNAIL", [4, 6], K, 16, 5, 2, 2, 8, attention=False, **sizes)
    call = lambda codes, condition: network(codes, condition=condition)[0]  # noqa: E731
    top = torch.arange(6).view(1, 2, 3) % K
    return {"call": call, "num_embeddings": K, "shape": (4, 6), "condition": top}


@trial("rosinality/vq-vae-2-pytorch", "PixelSNAIL, top")
def _rosinality_top() -> Trial:
    network = build("pixelsnail", "PixelSNAIL", [4, 5], K, 16, 5, 1, 1, 8, n_out_res_block=1)
    return {"call": lambda codes: network(codes)[0], "num_embeddings": K, "shape": (4, 5)}


@trial("vvvm23/vqvae-2", "PixelSnail, bottom")
def _vvvm23(attention: bool = False) -> Trial:
    network = build("pixelsnail", "PixelSnail", [4, 5], K, 16, 5, 1, 1, 8, attention=attention)
    return {"call": lambda codes: network(codes)[0], "num_embeddings": K, "shape": (4, 5)}


TRIALS["vvvm23/vqvae-2", "PixelSnail, top"] = partial(_vvvm23, True)


@trial("kamenbliznashki/generative_models", "PixelCNN")
def _kamenbliznashki() -> Trial:
    network = build("vqvae_prior", "PixelCNN", 4, 8, 3, 2, 1, 3, 3)

    def call(codes: Tensor, labels: Tensor, condition: Tensor) -> Tensor:
        signed = [2 * scaled(each) - 1 for each in (codes, condition)]
        logits: Tensor = network(*signed, F.one_hot(labels, 3).float()).squeeze(2)
        return logits

    top = torch.arange(6).view(1, 2, 3) % K
    return {"call": call, "num_embeddings": K, "shape": (4, 6), "num_classes": 3, "condition": top}


@trial("kamenbliznashki/generative_models", "PixelSNAIL")
def _kamenbliznashki_snail() -> Trial:
    heads = {"attn_n_layers": 1, "attn_nh": 2, "attn_dq": 4, "attn_dv": 8}
    network = build("vqvae_prior", "PixelSNAIL", [1, 1, (4, 5)], 8, 1, 1, 3, 3, **heads)

    def call(codes: Tensor, labels: Tensor) -> Tensor:
        logits: Tensor = network(2 * scaled(codes) - 1, F.one_hot(labels, 3).float()).squeeze(2)
        return logits

    return {"call": call, "num_embeddings": K, "shape": (4, 5), "num_classes": 3}


@trial("r9y9/wavenet_vocoder", "WaveNet, softmax")
def _r9y9() -> Trial:
    conditioned = {"cin_channels": 3, "gin_channels": 4, "n_speakers": 3, "use_speaker_embedding": True}
    network = build("wavenet_vocoder", "WaveNet", K, 6, 2, 8, 8, 8, 2, **conditioned)

    def call(codes: Tensor, labels: Tensor, condition: Tensor) -> Tensor:
        logits: Tensor = network(F.one_hot(codes, K).mT.float(), condition, labels[:, None])
        return logits

    return {"call": call, "num_embeddings": K, "shape": (40,), "num_classes": 3, "predicts": "next"} | {
        "condition": torch.randn(1, 3, 40)
    }


@trial("r9y9/wavenet_vocoder", "WaveNet, mixture of logistics")
def _r9y9_mixture() -> Trial:
    network = build("wavenet_vocoder", "WaveNet", 30, 6, 2, 8, 8, 8, 2, scalar_input=True)
    call = lambda codes: network(2 * scaled(codes, 1 << 16) - 1)  # noqa: E731
    options = {"num_mixtures": 10, "predicts": "next"}
    return {"call": call, "num_embeddings": 1 << 16, "shape": (40,), **options}


@trial("kan-bayashi/PytorchWaveNetVocoder", "WaveNet")
def _kan_bayashi() -> Trial:
    network = build("wavenet_vocoder.nets.wavenet", "WaveNet", K, 3, 8, 8, 3, 2, 2)
    call = lambda codes, condition: network(codes, condition).mT  # noqa: E731
    options = {"predicts": "next", "condition": torch.randn(1, 3, 40)}
    return {"call": call, "num_embeddings": K, "shape": (40,), **options}


@trial("golbin/WaveNet", "WaveNet")
def _golbin() -> Trial:
    network = build("wavenet.networks", "WaveNet", 3, 2, K, 8)
    network.densnet.softmax = nn.Identity()  # it returns probabilities
    network.blocks = nn.ModuleList(network.res_stack.res_blocks)  # else these aren't in its parameters

    def call(codes: Tensor) -> Tensor:
        padded = F.pad(F.one_hot(codes, K).float(), (0, 0, network.receptive_fields, 0))
        logits: Tensor = network(padded).mT
        return logits

    return {"call": call, "num_embeddings": K, "shape": (40,), "predicts": "next"}


@trial("locuslab/TCN", "TCN, characters")
def _locuslab() -> Trial:
    network = build("TCN.char_cnn.model", "TCN", 8, K, [8, 8], 3)
    call = lambda codes: network(codes).mT  # noqa: E731
    return {"call": call, "num_embeddings": K, "shape": (40,), "predicts": "next"}


@trial("anordertoreclaim/PixelCNN", "PixelCNN, RGB")
def _anordertoreclaim() -> Trial:
    sizes = {"hidden_fmaps": 6, "causal_ksize": 3, "hidden_ksize": 3, "hidden_layers": 1}
    config = SimpleNamespace(color_levels=K, out_hidden_fmaps=6, **sizes)
    network = build("pixelcnn", "PixelCNN", config)

    def call(codes: Tensor, labels: Tensor) -> Tensor:  # its images are (B, 3, H, W)
        logits: Tensor = network(codes.movedim(-1, 1) / (K - 1), labels)
        return logits.movedim(2, -1)

    return {"call": call, "num_embeddings": K, "shape": (4, 5), "num_quantizers": 3, "num_classes": 10}


@trial("pi-tau/pixelcnn", "PixelCNN, RGB")
def _pi_tau() -> Trial:
    network = build("pixelcnn", "PixelCNN", (3, 4, 5), K, 1, 6, 3)
    call = lambda codes: network(codes.movedim(-1, 1) / (K - 1)).movedim(2, -1)  # noqa: E731
    return {"call": call, "num_embeddings": K, "shape": (4, 5), "num_quantizers": 3}


@trial("pclucas14/pixel-cnn-pp", "PixelCNN++")
def _pclucas14() -> Trial:
    network = build("model", "PixelCNN", 1, 8, 2, input_channels=1)
    call = lambda codes: network(2 * scaled(codes, 256) - 1, sample=True)  # noqa: E731
    return {"call": call, "num_embeddings": 256, "shape": (8, 8)}


@trial("kamenbliznashki/pixel_models", "PixelCNN++, grey")
def _pixel_models_grey() -> Trial:
    network = build("pixelcnnpp", "PixelCNNpp", (1, 8, 8), 8, 1, 2, drop_rate=0)

    def call(codes: Tensor) -> Tensor:
        weights, means, log_scales, _ = network(2 * scaled(codes, 256) - 1).chunk(4, 1)
        return torch.cat([weights, means, log_scales.clamp(min=-7)], 1)

    return {"call": call, "num_embeddings": 256, "shape": (8, 8), "num_mixtures": 2}


@trial("kamenbliznashki/pixel_models", "PixelCNN++, RGB")
def _pixel_models_rgb() -> Trial:
    network = build("pixelcnnpp", "PixelCNNpp", (3, 8, 8), 8, 1, 2, drop_rate=0)

    def call(codes: Tensor) -> Tensor:
        x = 2 * codes.movedim(-1, 1) / 255 - 1
        weights, rest = network(x).split([2, 18], 1)
        means, log_scales, coefficients = rest.unflatten(1, (3, 2, 3)).unbind(1)
        a, b, c = coefficients.tanh().unbind(2)
        red, green = x[:, :1], x[:, 1:2]
        of_colours = means[:, :, 0], means[:, :, 1] + a * red, means[:, :, 2] + b * red + c * green
        scales = log_scales.clamp(min=-7).unbind(2)
        colours = [torch.cat([weights, *each], 1) for each in zip(of_colours, scales, strict=True)]
        return torch.stack(colours, -1)

    return {"call": call, "num_embeddings": 256, "shape": (8, 8), "num_quantizers": 3, "num_mixtures": 2}


@trial("karpathy/minGPT", "GPT")
def _mingpt() -> Trial:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": K, "block_size": 20}
    config = import_module("mingpt.model").GPT.get_default_config()
    config.merge_from_dict(sizes | {"model_type": None})
    network = build("mingpt.model", "GPT", config)
    return {"call": lambda codes: network(codes)[0].mT, "num_embeddings": K, "shape": (20,), **NEXT}


@trial("karpathy/nanoGPT", "GPT")
def _nanogpt() -> Trial:
    config = build("model", "GPTConfig", 20, K, 2, 2, 8)
    network = build("model", "GPT", config)  # it returns all logits if there are targets
    return {"call": lambda codes: network(codes, codes)[0].mT, "num_embeddings": K, "shape": (20,), **NEXT}


@trial("CompVis/taming-transformers", "GPT")
def _taming() -> Trial:
    """With the code of a start before the codes, as its Net2NetTransformer gives it."""
    with mock.patch.dict(sys.modules, transformers=mock.MagicMock()):  # an old version is imported
        network = build("taming.modules.transformer.mingpt", "GPT", K, 20, 2, 2, 8)
    call = lambda codes: network(F.pad(codes[:, :-1], (1, 0)))[0].mT  # noqa: E731
    return {"call": call, "num_embeddings": K, "shape": (20,)}


@trial("valeoai/Maskgit-pytorch", "Transformer")
def _maskgit() -> Trial:
    """It fills in masked codes, in any order."""
    network = build("Network.transformer", "Transformer", 4, 8, K, 2, 2, 16, nclass=3)

    def call(codes: Tensor, labels: Tensor) -> Tensor:
        logits: Tensor = network(codes, labels, torch.zeros_like(labels, dtype=torch.bool))
        return logits.view(*codes.shape, -1)[..., :K].movedim(3, 1)

    return {"call": call, "num_embeddings": K, "shape": (4, 4), "num_classes": 3}
