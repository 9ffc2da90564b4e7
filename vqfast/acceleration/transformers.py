"""transformers: every class there that searches a codebook. Checked with 4.57.6 to 5.24.0.

Models that hold one of these classes are covered by it (Moshi, CSM and Kyutai hold Mimi, Dia holds DAC,
MusicGen and Bark hold Encodec). Left out are classes that search no codebook: X-Codec-2 and NeuCodec round,
FLAVA's codebook and the wav2vec 2.0 family take an argmax of logits, and OWL-ViT, ESMFold and Inkling compare
boxes, atoms, bins or patch sizes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.acceleration.replacement import Method, Replacement
from vqfast.acceleration.search import straight_through, too_small, too_small_to_search
from vqfast.functional import nearest_code, nearest_unit_code, projected_codes, residual_codes
from vqfast.functional.autocast import autocast_dtype
from vqfast.ops.define import transformed


def _quantize(original: Method, self: Any, hidden_states: Tensor) -> Any:
    """Encodec, Mimi, X-Codec, Higgs Audio, WavTokenizer: ``(N, D)`` -> int64 ``(N,)``."""
    if too_small_to_search(hidden_states, self.embed):
        return original(self, hidden_states)
    return nearest_code(hidden_states, self.embed)


EMBED = "codebook.embed"
REPLACEABLE = ("forward", "encode", "decode", "quantize", "decode_latents")


def _is_original(part: nn.Module) -> bool:
    """Whether a part is of the library's own class, without hooks or methods replaced on the instance."""
    hooks = part._forward_hooks or part._forward_pre_hooks
    hooks = hooks or part._backward_hooks or part._backward_pre_hooks
    known = type(part) in (nn.Linear, nn.Conv1d, nn.Embedding)
    known = known or type(part).__module__.startswith("transformers.models.")
    return known and not hooks and not any(name in part.__dict__ for name in REPLACEABLE)


def _matches(tensor: object, x: Tensor, shape: torch.Size) -> bool:
    """Whether something is a plain tensor of ``shape``, with the dtype and device of ``x``."""
    if not isinstance(tensor, Tensor) or type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        return False
    return (tensor.shape, tensor.dtype, tensor.device) == (shape, x.dtype, x.device)


def _codebooks(x: Tensor, stages: list[nn.Module], name: str) -> list[Tensor] | None:
    """The stages' codebooks, if all stages can code ``x (B, C, T)`` in one pass.

    ``None`` if a stage was changed, or if residuals are rounded to less than float32.
    """
    wide = x.dtype in (torch.float32, torch.float64)
    if not stages or not wide or not all(_is_original(part) for stage in stages for part in stage.modules()):
        return None
    codebooks = list(map(operator.attrgetter(name), stages))
    alike = all(_matches(codebook, x, codebooks[0].shape) for codebook in codebooks)
    return codebooks if alike and not too_small_to_search(x, codebooks[0]) else None


def _codebooks_and_maps(
    x: Tensor, stages: list[nn.Module], name: str, *layers: str
) -> tuple[list[Tensor], list[list[Tensor]]] | None:
    """``_codebooks``, and the weights and biases of each stage's ``layers`` into its codebook and back."""
    codebooks = _codebooks(x, stages, name) if autocast_dtype(x) is None else None
    if codebooks is None:
        return None
    width, channels = codebooks[0].shape[1], x.shape[1]
    shapes = list(map(torch.Size, ((width, channels), (width,), (channels, width), (channels,))))
    pairs = ([getattr(stage, layer) for layer in layers] for stage in stages)
    maps = [
        [into.weight.squeeze(-1), into.bias, back.weight.squeeze(-1), back.bias]  # of kernels one wide
        for into, back in pairs
    ]
    alike = (_matches(each, x, shape) for stage in maps for each, shape in zip(stage, shapes, strict=True))
    return (codebooks, maps) if all(alike) else None


def _stages_first(indices: Tensor) -> Tensor:
    """``(B, T, Q)`` -> ``(Q, B, T)``, the order of these models."""
    return indices.movedim(-1, 0).contiguous()


def _encodec(original: Method, self: Any, embeddings: Tensor, bandwidth: float | None = None) -> Any:
    """Encodec, X-Codec: ``(B, D, T)`` -> int64 ``(Q, B, T)``."""
    stages = list(self.layers if hasattr(self, "layers") else self.quantizers)
    codebooks = _codebooks(embeddings, stages[: self.get_num_quantizers_for_bandwidth(bandwidth)], EMBED)
    if codebooks is None:
        return original(self, embeddings, bandwidth)
    return _stages_first(residual_codes(embeddings, codebooks))


def _mimi(original: Method, self: Any, embeddings: Tensor, num_quantizers: int | None = None) -> Any:
    """Mimi, where a projection comes before the stages: ``(B, D, T)`` -> int64 ``(Q, B, T)``."""
    codebooks = _codebooks(embeddings, list(self.layers)[:num_quantizers], EMBED)
    if codebooks is None:
        return original(self, embeddings, num_quantizers)
    x = embeddings if self.input_proj is None else self.input_proj(embeddings)
    return _stages_first(residual_codes(x, codebooks))


def _higgs(original: Method, self: Any, embeddings: Tensor, bandwidth: float | None = None) -> Any:
    """Higgs Audio: ``(B, C, T)`` -> int64 ``(Q, B, T)``."""
    stages = list(self.quantizers)[: self.get_num_quantizers_for_bandwidth(bandwidth)]
    found = _codebooks_and_maps(embeddings, stages, EMBED, "project_in", "project_out")
    if found is None:
        return original(self, embeddings, bandwidth)
    return _stages_first(projected_codes(embeddings, *found))


def _decode_latents(original: Method, self: Any, hidden_states: Tensor) -> Any:
    """DAC, between unit vectors: ``(B, D, T)`` -> code vectors ``(B, D, T)``, int64 ``(B, T)``."""
    offloaded = hasattr(self.codebook, "_hf_hook")  # then the library's code fetches the weights
    if offloaded or too_small_to_search(hidden_states, self.codebook.weight):
        return original(self, hidden_states)
    x, codebook = F.normalize(hidden_states.transpose(1, 2), dim=-1), F.normalize(self.codebook.weight)
    indices = nearest_code(x, codebook)
    return self.codebook(indices).transpose(1, 2), indices


def _dac(original: Method, self: Any, hidden_state: Tensor, n_quantizers: int | None = None) -> Any:
    """All stages of DAC in evaluation: ``(B, C, T)`` -> the same, indices, latents and two losses."""
    stages = [stage for q, stage in enumerate(self.quantizers) if n_quantizers is None or q < n_quantizers]
    found = None
    if not self.training:
        found = _codebooks_and_maps(hidden_state, stages, "codebook.weight", "in_proj", "out_proj")
    if found is None:
        return original(self, hidden_state, n_quantizers)
    codebooks, maps = found
    if torch.is_grad_enabled() or transformed():
        return _dac_with_gradients(hidden_state, codebooks, maps)
    indices, latents, out = projected_codes(hidden_state, codebooks, maps, metric="cosine", return_parts=True)
    codes = [F.embedding(*each) for each in zip(indices.unbind(2), codebooks, strict=True)]
    loss = F.mse_loss(latents, torch.cat(codes, -1).transpose(1, 2))
    loss = loss.mul(len(stages)).repeat(len(indices))
    return out, indices.transpose(1, 2).contiguous(), latents, loss, loss.clone()


def _dac_with_gradients(x: Tensor, codebooks: list[Tensor], maps: list[list[Tensor]]) -> tuple[Tensor, ...]:
    """``_dac`` as differentiable operations.

    Stage i searches the latents ``W_i (x - sum_j (V_j s_j + v_j)) + w_i``, with the code vectors ``s_j`` of
    the stages j before it. Multiplied out, they are ``W_i x + w_i - sum_j (W_i V_j s_j + W_i v_j)``. So one
    product with ``x`` serves all stages, and a stage's own products are as narrow as the code vectors.
    """
    stages, width = len(codebooks), codebooks[0].shape[1]
    into, offsets, back, biases = (list(each) for each in zip(*maps, strict=True))
    w, v, v_bias = torch.cat(into), torch.cat(back, 1), torch.stack(biases)  # (QD, C), (C, QD), (Q, C)
    from_biases = (w @ (v_bias.cumsum(0) - v_bias).T).view(stages, width, stages)
    bias = torch.stack(offsets) - from_biases.diagonal(dim1=0, dim2=2).T  # (Q, D)
    unit_codebooks = F.normalize(torch.stack(codebooks), dim=-1)
    w_v = w @ v
    parts = F.linear(x.transpose(1, 2), w, bias.flatten()).chunk(stages, -1)
    latents: list[Tensor] = []
    quantized: list[Tensor] = []
    passed: list[Tensor] = []
    indices: list[Tensor] = []
    for q, (latent, codebook, unit_codebook) in enumerate(zip(parts, codebooks, unit_codebooks, strict=True)):
        if q > 0:
            at = q * width
            latent = latent - F.linear(torch.cat(passed, -1), w_v[at : at + width, :at])
        indices.append(nearest_code(F.normalize(latent, dim=-1), unit_codebook))
        latents.append(latent)
        quantized.append(F.embedding(indices[-1], codebook))
        passed.append(latent + (quantized[-1] - latent).detach())
    z, z_q = torch.cat(latents, -1), torch.cat(quantized, -1)
    out = v @ torch.cat(passed, -1).transpose(1, 2) + v_bias.sum(0).unsqueeze(1)
    losses = F.mse_loss(z, z_q.detach()), F.mse_loss(z_q, z.detach())
    commitment_loss, codebook_loss = ((stages * loss).repeat(len(x)) for loss in losses)
    return out, torch.stack(indices, 1), z.transpose(1, 2).contiguous(), commitment_loss, codebook_loss


def _emu3(original: Method, self: Any, hidden_state: Tensor) -> Any:
    """Emu3: ``(B, T, D, H, W)`` -> int64 ``(B, T, H, W)``."""
    codebook = self.embedding.weight
    if too_small_to_search(hidden_state, codebook):
        return original(self, hidden_state)
    x = hidden_state.movedim(2, -1)
    return nearest_code(x.reshape(-1, x.shape[-1]), codebook).view(x.shape[:-1])


def _chameleon(original: Method, self: Any, hidden_state: Tensor) -> Any:
    """Chameleon, Janus: ``(B, D, H, W)`` -> the same, loss, int64 ``(B * H * W,)``."""
    codebook = self.embedding.weight
    if too_small(hidden_state, codebook):
        return original(self, hidden_state)
    return straight_through(hidden_state, codebook, commitment_weight=1, codebook_weight=self.beta)


def _glm_image(original: Method, self: Any, hidden_state: Tensor) -> Any:
    """GLM-Image, as Chameleon between unit vectors.

    Without gradients, only the code vectors that are chosen are brought to length 1.
    """
    codebook = self.embedding.weight
    if too_small(hidden_state, codebook):
        return original(self, hidden_state)
    if torch.is_grad_enabled() or transformed() or hidden_state.dtype != codebook.dtype:
        z = F.normalize(hidden_state, dim=1)
        return straight_through(z, F.normalize(codebook), commitment_weight=1, codebook_weight=self.beta)
    z = F.normalize(hidden_state.movedim(1, -1).contiguous(), dim=-1)
    indices = nearest_unit_code(z.flatten(0, -2), codebook)
    quantized = F.normalize(F.embedding(indices, codebook)).view(z.shape)
    loss = F.mse_loss(quantized, z) * (1 + self.beta)
    return (z + (quantized - z)).movedim(-1, 1).contiguous(), loss, indices


def _size(name: str) -> Callable[[Any], tuple[int, int]]:
    return lambda module: tuple(operator.attrgetter(name)(module).shape)


def _offloaded(module: Any) -> str:
    return "its codebook is offloaded" if hasattr(module.codebook, "_hf_hook") else ""


# Quantisers of vectors in audio codecs.
EUCLIDEAN = Replacement({"quantize": _quantize}, _size("embed"), needs=("embed",), callers=("encode",))
MIMI = EUCLIDEAN._replace(size=_size("embed_sum"))  # reading its embed would fill a cache
DAC = Replacement(
    {"decode_latents": _decode_latents},
    _size("codebook.weight"),
    needs=("codebook",),
    callers=("forward",),
    refusal=_offloaded,
)
# All stages of an audio codec in one pass.
ENCODEC_STAGES = Replacement(
    {"encode": _encodec},
    _size("layers.0.codebook.embed"),
    needs=("layers", "get_num_quantizers_for_bandwidth"),
    reported=False,
)
XCODEC_STAGES = ENCODEC_STAGES._replace(
    size=_size("quantizers.0.codebook.embed"), needs=("quantizers", "get_num_quantizers_for_bandwidth")
)
HIGGS_STAGES = XCODEC_STAGES._replace(methods={"encode": _higgs})
MIMI_STAGES = ENCODEC_STAGES._replace(
    methods={"encode": _mimi}, size=_size("layers.0.codebook.embed_sum"), needs=("layers", "input_proj")
)
DAC_STAGES = Replacement(
    {"forward": _dac}, _size("quantizers.0.codebook.weight"), needs=("quantizers",), reported=False
)
# Quantisers of grids in image and video models.
EMU3 = Replacement({"forward": _emu3}, _size("embedding.weight"), needs=("embedding",))
CHAMELEON = Replacement({"forward": _chameleon}, _size("embedding.weight"), needs=("embedding", "beta"))
GLM_IMAGE = CHAMELEON._replace(methods={"forward": _glm_image})

REPLACEMENTS = {
    f"transformers.models.{model}.modeling_{model}.{name}": replacement
    for model, name, replacement in [
        ("encodec", "EncodecEuclideanCodebook", EUCLIDEAN),
        ("xcodec", "XcodecEuclideanCodebook", EUCLIDEAN),
        ("higgs_audio_v2_tokenizer", "HiggsAudioV2TokenizerEuclideanCodebook", EUCLIDEAN),
        ("wavtokenizer", "WavTokenizerEuclideanCodebook", EUCLIDEAN),
        ("mimi", "MimiEuclideanCodebook", MIMI),
        ("encodec", "EncodecResidualVectorQuantizer", ENCODEC_STAGES),
        ("mimi", "MimiResidualVectorQuantizer", MIMI_STAGES),
        ("xcodec", "XcodecResidualVectorQuantization", XCODEC_STAGES),
        ("higgs_audio_v2_tokenizer", "HiggsAudioV2TokenizerResidualVectorQuantization", HIGGS_STAGES),
        ("dac", "DacVectorQuantize", DAC),
        ("dac", "DacResidualVectorQuantize", DAC_STAGES),  # its name until 4.57
        ("dac", "DacResidualVectorQuantizer", DAC_STAGES),
        ("emu3", "Emu3VQVAEVectorQuantizer", EMU3),
        ("chameleon", "ChameleonVQVAEVectorQuantizer", CHAMELEON),
        ("janus", "JanusVQVAEVectorQuantizer", CHAMELEON),
        ("glm_image", "GlmImageVQVAEVectorQuantizer", GLM_IMAGE),
    ]
}
