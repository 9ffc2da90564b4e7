"""transformers: every class there that searches a codebook. Checked with 5.23.0.

Models that hold one of these (Moshi, CSM, Kyutai: Mimi; Dia: DAC; MusicGen, Bark: Encodec) are covered by it.
Not here, as nothing is searched: X-Codec-2 and NeuCodec (finite scalar quantisation rounds), FLAVA's
codebook and the wav2vec 2.0 family (argmax of logits); nor least distances between boxes, atoms, bins or
patch sizes (OWL-ViT, ESMFold, Inkling).
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.accelerate.search import little, little_to_search, straight_through, unit_vectors
from vqfast.accelerate.swap import Fast, Swap
from vqfast.functional import nearest_code


def _quantize(original: Fast, self: nn.Module, hidden_states: Tensor) -> Tensor:
    """Encodec, Mimi, X-Codec, Higgs Audio: ``(N, D)`` -> int64 ``(N,)``."""
    codes = self.embed
    if little_to_search(hidden_states, codes):
        return original(self, hidden_states)
    return nearest_code(hidden_states, codes)


def _stages(original: Fast, self: nn.Module, embeddings: Tensor, *args, **kwargs) -> Tensor:
    """Encodec, X-Codec, Higgs Audio, of ``(B, D, T)``: vectors in one piece need no copy at each stage."""
    return original(self, embeddings.transpose(1, 2).contiguous().transpose(1, 2), *args, **kwargs)


def _mimi_stages(original: Fast, self: nn.Module, embeddings: Tensor, num_quantizers: int | None = None):
    """The same of Mimi, where a projection stands before them: int64 ``(Q, B, T)``."""
    x = embeddings if self.input_proj is None else self.input_proj(embeddings)
    residual, indices = x.transpose(1, 2).contiguous().transpose(1, 2), []
    for stage in list(self.layers)[:num_quantizers]:
        indices.append(stage.encode(residual))
        residual = residual - stage.decode(indices[-1])
    return torch.stack(indices)


def _decode_latents(original: Fast, self: nn.Module, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """DAC, by unit vectors: ``(B, D, T)`` -> codes ``(B, D, T)``, int64 ``(B, T)``."""
    offloaded = hasattr(self.codebook, "_hf_hook")  # then the original fetches the weights
    if offloaded or little_to_search(hidden_states, self.codebook.weight):
        return original(self, hidden_states)
    x, codes = F.normalize(hidden_states.transpose(1, 2), dim=-1), F.normalize(self.codebook.weight)
    indices = nearest_code(x, codes)
    return self.codebook(indices).transpose(1, 2), indices


def _as_built(stage: nn.Module, library: str) -> bool:
    """Whether a stage of DAC is two convolutions and a codebook, to which nobody has attached anything."""
    for part in stage.modules():
        hooks = part._forward_hooks or part._forward_pre_hooks
        hooks = hooks or part._backward_hooks or part._backward_pre_hooks
        if hooks or "forward" in part.__dict__ or "decode_latents" in part.__dict__:
            return False
    cls = type(stage)
    is_theirs = (cls.__module__, cls.__qualname__) == (library, "DacVectorQuantize")
    return is_theirs and type(stage.in_proj) is type(stage.out_proj) is nn.Conv1d


def _dac(original: Fast, self: nn.Module, hidden_state: Tensor, n_quantizers: int | None = None):
    """All stages of DAC in evaluation, ``(B, C, T)`` -> the same, codes, latents and two losses.

    Stage i's latents ``W_i (h - sum_j (V_j s_j + v_j)) + w_i``, with the codes ``s_j`` of those before it,
    are ``W_i h + w_i - sum_j (W_i V_j s_j + W_i v_j)``: one product with ``h`` and one of the codes for all
    stages, instead of two a stage; the others are as narrow as the codes.
    """
    x, stages = hidden_state.transpose(1, 2), list(self.quantizers)[:n_quantizers]
    wide = hidden_state.dtype in (torch.float32, torch.float64)  # others lose by the differences
    wide = wide and not torch.is_autocast_enabled(hidden_state.device.type)
    if self.training or not wide or not stages:
        return original(self, hidden_state, n_quantizers)
    if not all(_as_built(stage, type(self).__module__) for stage in stages):
        return original(self, hidden_state, n_quantizers)
    width = stages[0].codebook_dim
    enter = torch.cat([stage.in_proj.weight[..., 0] for stage in stages])  # (Q * D, C)
    leave = torch.cat([stage.out_proj.weight[..., 0] for stage in stages], 1)  # (C, Q * D)
    added = torch.stack([stage.out_proj.bias for stage in stages])  # (Q, C)
    left = (enter @ (added.cumsum(0) - added).T).unflatten(0, (-1, width)).diagonal(dim1=0, dim2=2)  # (D, Q)
    bias = torch.stack([stage.in_proj.bias for stage in stages]) - left.T
    books = F.normalize(torch.stack([stage.codebook.weight for stage in stages]), dim=-1)
    mixed = enter @ leave
    parts = F.linear(x, enter, bias.flatten()).split(width, -1)
    latents, quantized, passed, indices = [], [], [], []
    for q, (stage, latent, book) in enumerate(zip(stages, parts, books, strict=True)):
        if q > 0:
            at = q * width
            latent = latent - F.linear(torch.cat(passed, -1), mixed[at : at + width, :at])
        indices.append(nearest_code(F.normalize(latent, dim=-1), book))
        latents.append(latent)
        quantized.append(stage.codebook(indices[-1]))
        passed.append(latent + (quantized[-1] - latent).detach())
    z, z_q = torch.cat(latents, -1), torch.cat(quantized, -1)
    out = leave @ torch.cat(passed, -1).transpose(1, 2) + added.sum(0).unsqueeze(1)
    losses = F.mse_loss(z, z_q.detach()), F.mse_loss(z_q, z.detach())
    commitment, codebook = ((len(stages) * loss).repeat(len(x)) for loss in losses)
    return out, torch.stack(indices, 1), z.transpose(1, 2).contiguous(), commitment, codebook


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
ENCODEC_STAGES = Swap({"encode": _stages}, _size("layers.0.codebook.embed"), reported=False)
STAGES = Swap({"encode": _stages}, _size("quantizers.0.codebook.embed"), reported=False)
MIMI = Swap({"quantize": _quantize}, _size("embed_sum"))  # its embed is a cache that isn't to be filled here
MIMI_STAGES = Swap({"encode": _mimi_stages}, _size("layers.0.codebook.embed_sum"), reported=False)
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
        ("xcodec", "XcodecResidualVectorQuantization", STAGES),
        ("higgs_audio_v2_tokenizer", "HiggsAudioV2TokenizerResidualVectorQuantization", STAGES),
        ("dac", "DacVectorQuantize", DAC),
        ("dac", "DacResidualVectorQuantizer", DAC_STAGES),
        ("emu3", "Emu3VQVAEVectorQuantizer", EMU3),
        ("chameleon", "ChameleonVQVAEVectorQuantizer", CHAMELEON),
        ("janus", "JanusVQVAEVectorQuantizer", CHAMELEON),
        ("glm_image", "GlmImageVQVAEVectorQuantizer", GLM_IMAGE),
    ]
}
