"""transformers: every class there that searches a codebook. Checked with 5.23.0.

Models that hold one of these (Moshi, CSM, Kyutai: Mimi; Dia: DAC; MusicGen, Bark: Encodec) are covered by it.
Not here, as nothing is searched: X-Codec-2 and NeuCodec (finite scalar quantisation rounds), FLAVA's
codebook and the wav2vec 2.0 family (argmax of logits); nor least distances between boxes, atoms, bins or
patch sizes (OWL-ViT, ESMFold, Inkling).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.accelerate.recompute import recomputed
from vqfast.accelerate.search import little, little_to_search, straight_through, unit_vectors
from vqfast.accelerate.swap import Fast, Swap
from vqfast.functional import nearest_code, projected_codes, residual_codes


def _quantize(original: Fast, self: nn.Module, hidden_states: Tensor) -> Tensor:
    """Encodec, Mimi, X-Codec, Higgs Audio: ``(N, D)`` -> int64 ``(N,)``."""
    codes = self.embed
    if little_to_search(hidden_states, codes):
        return original(self, hidden_states)
    return nearest_code(hidden_states, codes)


REPLACED = ("forward", "encode", "decode", "quantize", "decode_latents")


def _as_built(modules: Iterable[nn.Module]) -> bool:
    """Whether nobody has attached anything to any part of these, or put something else in its place."""
    for module in modules:
        for part in module.modules():
            hooks = part._forward_hooks or part._forward_pre_hooks
            hooks = hooks or part._backward_hooks or part._backward_pre_hooks
            theirs = type(part) in (nn.Linear, nn.Conv1d, nn.Embedding)
            theirs = theirs or type(part).__module__.startswith("transformers.models.")
            if hooks or not theirs or any(name in part.__dict__ for name in REPLACED):
                return False
    return True


def _at_once(x: Tensor, stages: list[nn.Module], codes: list[Tensor]) -> bool:
    """Whether to code ``x (B, C, T)`` by all stages in one pass: others round what is left differently."""
    if not stages or x.dtype not in (torch.float32, torch.float64) or little_to_search(x, codes[0]):
        return False
    return all((book.dtype, book.device) == (x.dtype, x.device) for book in codes) and _as_built(stages)


def _first(codes: Tensor) -> Tensor:
    """``(B, T, Q)`` as these models have it: ``(Q, B, T)``."""
    return codes.movedim(-1, 0).contiguous()


def _encodec(original: Fast, self: nn.Module, embeddings: Tensor, bandwidth: float | None = None) -> Tensor:
    """Encodec, X-Codec: ``(B, D, T)`` -> int64 ``(Q, B, T)``."""
    stages = list(self.layers if hasattr(self, "layers") else self.quantizers)
    stages = stages[: self.get_num_quantizers_for_bandwidth(bandwidth)]
    codes = [stage.codebook.embed for stage in stages]
    if not _at_once(embeddings, stages, codes):
        return original(self, embeddings, bandwidth)
    return _first(residual_codes(embeddings, codes))


def _mimi(original: Fast, self: nn.Module, embeddings: Tensor, num_quantizers: int | None = None) -> Tensor:
    """The same of Mimi, where a projection stands before the stages."""
    stages = list(self.layers)[:num_quantizers]
    codes = [stage.codebook.embed for stage in stages]
    if not _at_once(embeddings, stages, codes):
        return original(self, embeddings, num_quantizers)
    x = embeddings if self.input_proj is None else self.input_proj(embeddings)
    return _first(residual_codes(x, codes))


def _maps(into: nn.Module, back: nn.Module) -> list[Tensor]:
    """Of one stage, as ``projected_codes`` takes them."""
    return [into.weight.flatten(1), into.bias, back.weight.flatten(1), back.bias]


def _higgs(original: Fast, self: nn.Module, embeddings: Tensor, bandwidth: float | None = None) -> Tensor:
    """Higgs Audio, ``(B, C, T)`` -> int64 ``(Q, B, T)``."""
    stages = list(self.quantizers)[: self.get_num_quantizers_for_bandwidth(bandwidth)]
    codes = [stage.codebook.embed for stage in stages]
    autocast = torch.is_autocast_enabled(embeddings.device.type)
    if autocast or not _at_once(embeddings, stages, codes):
        return original(self, embeddings, bandwidth)
    maps = [_maps(stage.project_in, stage.project_out) for stage in stages]
    return _first(projected_codes(embeddings, codes, maps)[0])


def _decode_latents(original: Fast, self: nn.Module, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """DAC, by unit vectors: ``(B, D, T)`` -> codes ``(B, D, T)``, int64 ``(B, T)``."""
    offloaded = hasattr(self.codebook, "_hf_hook")  # then the original fetches the weights
    if offloaded or little_to_search(hidden_states, self.codebook.weight):
        return original(self, hidden_states)
    x, codes = F.normalize(hidden_states.transpose(1, 2), dim=-1), F.normalize(self.codebook.weight)
    indices = nearest_code(x, codes)
    return self.codebook(indices).transpose(1, 2), indices


def _dac(original: Fast, self: nn.Module, hidden_state: Tensor, n_quantizers: int | None = None):
    """All stages of DAC in evaluation, ``(B, C, T)`` -> the same, codes, latents and two losses."""
    stages = list(self.quantizers)[:n_quantizers]
    codes = [stage.codebook.weight for stage in stages]
    autocast = torch.is_autocast_enabled(hidden_state.device.type)
    graph = torch.is_grad_enabled() and torch.compiler.is_compiling()  # which nothing can be put off in
    if self.training or graph or autocast or not _at_once(hidden_state, stages, codes):
        return original(self, hidden_state, n_quantizers)

    def fast(x):
        maps = [_maps(stage.in_proj, stage.out_proj) for stage in stages]
        indices, latents, out = projected_codes(x, codes, maps, unit=True, details=True)
        indices = indices.transpose(1, 2).contiguous()
        nearest = [F.embedding(index, book) for index, book in zip(indices.unbind(1), codes, strict=True)]
        loss = F.mse_loss(latents, torch.cat(nearest, -1).transpose(1, 2))
        loss = loss.mul(len(stages)).repeat(len(indices))
        return out, indices, latents, loss, loss.clone()

    if not torch.is_grad_enabled():
        return fast(hidden_state)
    slow = partial(original, self, n_quantizers=n_quantizers)
    return recomputed(fast, slow, hidden_state, list(self.parameters()))


def _emu3(original: Fast, self: nn.Module, hidden_state: Tensor) -> Tensor:
    """``(B, T, D, H, W)`` -> int64 ``(B, T, H, W)``."""
    codes = self.embedding.weight
    if little_to_search(hidden_state, codes):
        return original(self, hidden_state)
    x = hidden_state.movedim(2, -1)
    return nearest_code(x.reshape(-1, x.shape[-1]), codes).view(x.shape[:-1])


def _chameleon(original: Fast, self: nn.Module, hidden_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Chameleon, Janus: ``(B, D, H, W)`` -> the same, loss, int64 ``(B * H * W,)``."""
    codes = self.embedding.weight
    if little(hidden_state, codes):
        return original(self, hidden_state)
    return straight_through(hidden_state, codes, commitment=1, codebook=self.beta)


def _glm_image(original: Fast, self: nn.Module, hidden_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same between unit vectors."""
    if little(hidden_state, self.embedding.weight):
        return original(self, hidden_state)
    z, codes = F.normalize(hidden_state, dim=1), unit_vectors(self.embedding.weight)
    return straight_through(z, codes, commitment=1, codebook=self.beta)


def _size(name: str) -> Callable[[nn.Module], tuple[int, int]]:
    return lambda module: tuple(operator.attrgetter(name)(module).shape)


EUCLIDEAN = Swap({"quantize": _quantize}, _size("embed"))
ENCODEC_STAGES = Swap({"encode": _encodec}, _size("layers.0.codebook.embed"), reported=False)
XCODEC_STAGES = Swap({"encode": _encodec}, _size("quantizers.0.codebook.embed"), reported=False)
HIGGS_STAGES = Swap({"encode": _higgs}, _size("quantizers.0.codebook.embed"), reported=False)
MIMI = Swap({"quantize": _quantize}, _size("embed_sum"))  # its embed is a cache that isn't to be filled here
MIMI_STAGES = Swap({"encode": _mimi}, _size("layers.0.codebook.embed_sum"), reported=False)
DAC = Swap({"decode_latents": _decode_latents}, _size("codebook.weight"))
DAC_STAGES = Swap({"forward": _dac}, _size("quantizers.0.codebook.weight"), reported=False)
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
        ("encodec", "EncodecResidualVectorQuantizer", ENCODEC_STAGES),
        ("mimi", "MimiResidualVectorQuantizer", MIMI_STAGES),
        ("xcodec", "XcodecResidualVectorQuantization", XCODEC_STAGES),
        ("higgs_audio_v2_tokenizer", "HiggsAudioV2TokenizerResidualVectorQuantization", HIGGS_STAGES),
        ("dac", "DacVectorQuantize", DAC),
        ("dac", "DacResidualVectorQuantizer", DAC_STAGES),
        ("emu3", "Emu3VQVAEVectorQuantizer", EMU3),
        ("chameleon", "ChameleonVQVAEVectorQuantizer", CHAMELEON),
        ("janus", "JanusVQVAEVectorQuantizer", CHAMELEON),
        ("glm_image", "GlmImageVQVAEVectorQuantizer", GLM_IMAGE),
    ]
}
