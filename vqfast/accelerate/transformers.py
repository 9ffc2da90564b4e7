"""transformers: every class there that searches a codebook. Checked with 5.23.0.

Models that hold one of these (Moshi, CSM, Kyutai: Mimi; Dia: DAC; MusicGen, Bark: Encodec) are covered by it.
Not here, as nothing is searched: X-Codec-2 and NeuCodec (finite scalar quantisation rounds), FLAVA's
codebook and the wav2vec 2.0 family (argmax of logits).
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.accelerate.search import few, straight_through
from vqfast.accelerate.swap import Fast, Swap
from vqfast.functional import nearest_code


def _quantize(original: Fast, self: nn.Module, hidden_states: Tensor) -> Tensor:
    """Encodec, Mimi, X-Codec, Higgs Audio: ``(N, D)`` -> int64 ``(N,)``."""
    codes = self.embed
    return original(self, hidden_states) if few(hidden_states, codes) else nearest_code(hidden_states, codes)


def _decode_latents(original: Fast, self: nn.Module, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """DAC, by unit vectors: ``(B, D, T)`` -> codes ``(B, D, T)``, int64 ``(B, T)``."""
    offloaded = hasattr(self.codebook, "_hf_hook")  # then the original fetches the weights
    if offloaded or few(hidden_states, self.codebook.weight):
        return original(self, hidden_states)
    x, codes = F.normalize(hidden_states.transpose(1, 2), dim=-1), F.normalize(self.codebook.weight)
    indices = nearest_code(x, codes)
    return self.codebook(indices).transpose(1, 2), indices


def _emu3(original: Fast, self: nn.Module, hidden_state: Tensor) -> Tensor:
    """``(B, T, D, H, W)`` -> int64 ``(B, T, H, W)``."""
    codes = self.embedding.weight
    if few(hidden_state, codes):
        return original(self, hidden_state)
    x = hidden_state.movedim(2, -1)
    return nearest_code(x.reshape(-1, x.shape[-1]), codes).view(x.shape[:-1])


def _chameleon(original: Fast, self: nn.Module, hidden_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Chameleon, Janus: ``(B, D, H, W)`` -> the same, loss, int64 ``(B * H * W,)``."""
    codes = self.embedding.weight
    if few(hidden_state, codes):
        return original(self, hidden_state)
    return straight_through(hidden_state, codes, commitment=1, codebook=self.beta)


def _glm_image(original: Fast, self: nn.Module, hidden_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same between unit vectors."""
    if few(hidden_state, self.embedding.weight):
        return original(self, hidden_state)
    z, codes = F.normalize(hidden_state, dim=1), F.normalize(self.embedding.weight)
    return straight_through(z, codes, commitment=1, codebook=self.beta)


def _size(name: str) -> Callable[[nn.Module], tuple[int, int]]:
    return lambda module: tuple(operator.attrgetter(name)(module).shape)


EUCLIDEAN = Swap({"quantize": _quantize}, _size("embed"))
MIMI = Swap({"quantize": _quantize}, _size("embed_sum"))  # its embed is a cache that isn't to be filled here
DAC = Swap({"decode_latents": _decode_latents}, _size("codebook.weight"))
EMU3 = Swap({"forward": _emu3}, _size("embedding.weight"))
CHAMELEON = Swap({"forward": _chameleon}, _size("embedding.weight"))
GLM_IMAGE = Swap({"forward": _glm_image}, _size("embedding.weight"))

SWAPS = {
    f"transformers.models.{model}.modeling_{model}.{name}": swap
    for model, name, swap in [
        ("encodec", "EncodecEuclideanCodebook", EUCLIDEAN),
        ("xcodec", "XcodecEuclideanCodebook", EUCLIDEAN),
        ("higgs_audio_v2_tokenizer", "HiggsAudioV2TokenizerEuclideanCodebook", EUCLIDEAN),
        ("mimi", "MimiEuclideanCodebook", MIMI),
        ("dac", "DacVectorQuantize", DAC),
        ("emu3", "Emu3VQVAEVectorQuantizer", EMU3),
        ("chameleon", "ChameleonVQVAEVectorQuantizer", CHAMELEON),
        ("janus", "JanusVQVAEVectorQuantizer", CHAMELEON),
        ("glm_image", "GlmImageVQVAEVectorQuantizer", GLM_IMAGE),
    ]
}
