"""transformers: every class there that searches a codebook. Checked with 4.57.6 to 5.24.0.

Models that hold one of these (Moshi, CSM, Kyutai: Mimi; Dia: DAC; MusicGen, Bark: Encodec) are covered by it.
Not here, as nothing is searched: X-Codec-2 and NeuCodec (finite scalar quantisation rounds), FLAVA's
codebook and the wav2vec 2.0 family (argmax of logits); nor least distances between boxes, atoms, bins or
patch sizes (OWL-ViT, ESMFold, Inkling).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqfast.acceleration.search import little, little_to_search, straight_through
from vqfast.acceleration.swap import Fast, Swap
from vqfast.functional import nearest_code, nearest_unit_code, projected_codes, residual_codes
from vqfast.functional.autocast import autocast_dtype
from vqfast.ops.define import transformed


def _quantize(original: Fast, self: Any, hidden_states: Tensor) -> Tensor:
    """Encodec, Mimi, X-Codec, Higgs Audio, WavTokenizer: ``(N, D)`` -> int64 ``(N,)``."""
    codes = self.embed
    if little_to_search(hidden_states, codes):
        return original(self, hidden_states)
    return nearest_code(hidden_states, codes)


EMBED = "codebook.embed"
REPLACED = ("forward", "encode", "decode", "quantize", "decode_latents")


def _untouched(part: nn.Module) -> bool:
    """Whether nobody has attached anything to it, or put it in another's place."""
    hooks = part._forward_hooks or part._forward_pre_hooks
    hooks = hooks or part._backward_hooks or part._backward_pre_hooks
    theirs = type(part) in (nn.Linear, nn.Conv1d, nn.Embedding)
    theirs = theirs or type(part).__module__.startswith("transformers.models.")
    return theirs and not hooks and not any(name in part.__dict__ for name in REPLACED)


def _alike(tensor: object, x: Tensor, shape: torch.Size) -> bool:
    if not isinstance(tensor, Tensor) or type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        return False
    return (tensor.shape, tensor.dtype, tensor.device) == (shape, x.dtype, x.device)


def _codebooks(x: Tensor, stages: list[nn.Module], name: str) -> list[Tensor] | None:
    """What codes ``x (B, C, T)`` by all stages in one pass; ``None`` where they round what is left, or are
    not what they were built as.
    """
    wide = x.dtype in (torch.float32, torch.float64)
    if not stages or not wide or not all(_untouched(part) for stage in stages for part in stage.modules()):
        return None
    codes = list(map(operator.attrgetter(name), stages))
    alike = all(_alike(book, x, codes[0].shape) for book in codes)
    return codes if alike and not little_to_search(x, codes[0]) else None


def _between_maps(
    x: Tensor, stages: list[nn.Module], name: str, *layers: str
) -> tuple[list[Tensor], list[list[Tensor]]] | None:
    """The same, and each stage's ``layers`` into it and back as ``projected_codes`` takes them."""
    codes = _codebooks(x, stages, name) if autocast_dtype(x) is None else None
    if codes is None:
        return None
    width, channels = codes[0].shape[1], x.shape[1]
    shapes = list(map(torch.Size, ((width, channels), (width,), (channels, width), (channels,))))
    pairs = ([getattr(stage, layer) for layer in layers] for stage in stages)
    maps = [
        [into.weight.squeeze(-1), into.bias, back.weight.squeeze(-1), back.bias]  # of kernels one wide
        for into, back in pairs
    ]
    alike = (_alike(each, x, shape) for stage in maps for each, shape in zip(stage, shapes, strict=True))
    return (codes, maps) if all(alike) else None


def _first(codes: Tensor) -> Tensor:
    """``(B, T, Q)`` as these models have it: ``(Q, B, T)``."""
    return codes.movedim(-1, 0).contiguous()


def _encodec(original: Fast, self: Any, embeddings: Tensor, bandwidth: float | None = None) -> Tensor:
    """Encodec, X-Codec: ``(B, D, T)`` -> int64 ``(Q, B, T)``."""
    stages = list(self.layers if hasattr(self, "layers") else self.quantizers)
    codes = _codebooks(embeddings, stages[: self.get_num_quantizers_for_bandwidth(bandwidth)], EMBED)
    if codes is None:
        return original(self, embeddings, bandwidth)
    return _first(residual_codes(embeddings, codes))


def _mimi(original: Fast, self: Any, embeddings: Tensor, num_quantizers: int | None = None) -> Tensor:
    """The same of Mimi, where a projection stands before the stages."""
    codes = _codebooks(embeddings, list(self.layers)[:num_quantizers], EMBED)
    if codes is None:
        return original(self, embeddings, num_quantizers)
    x = embeddings if self.input_proj is None else self.input_proj(embeddings)
    return _first(residual_codes(x, codes))


def _higgs(original: Fast, self: Any, embeddings: Tensor, bandwidth: float | None = None) -> Tensor:
    """Higgs Audio, ``(B, C, T)`` -> int64 ``(Q, B, T)``."""
    stages = list(self.quantizers)[: self.get_num_quantizers_for_bandwidth(bandwidth)]
    found = _between_maps(embeddings, stages, EMBED, "project_in", "project_out")
    return (
        original(self, embeddings, bandwidth)
        if found is None
        else _first(projected_codes(embeddings, *found))
    )


def _decode_latents(original: Fast, self: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """DAC, by unit vectors: ``(B, D, T)`` -> codes ``(B, D, T)``, int64 ``(B, T)``."""
    offloaded = hasattr(self.codebook, "_hf_hook")  # then the original fetches the weights
    if offloaded or little_to_search(hidden_states, self.codebook.weight):
        return original(self, hidden_states)
    x, codes = F.normalize(hidden_states.transpose(1, 2), dim=-1), F.normalize(self.codebook.weight)
    indices = nearest_code(x, codes)
    return self.codebook(indices).transpose(1, 2), indices


def _dac(original: Fast, self: Any, hidden_state: Tensor, n_quantizers: int | None = None):
    """All stages of DAC in evaluation, ``(B, C, T)`` -> the same, codes, latents and two losses."""
    stages = [stage for q, stage in enumerate(self.quantizers) if n_quantizers is None or q < n_quantizers]
    found = None
    if not self.training:
        found = _between_maps(hidden_state, stages, "codebook.weight", "in_proj", "out_proj")
    if found is None:
        return original(self, hidden_state, n_quantizers)
    codes, maps = found
    if torch.is_grad_enabled() or transformed():
        return _dac_with_gradients(hidden_state, codes, maps)
    indices, latents, out = projected_codes(hidden_state, codes, maps, metric="cosine", return_parts=True)
    nearest = [F.embedding(index, book) for index, book in zip(indices.unbind(2), codes, strict=True)]
    loss = F.mse_loss(latents, torch.cat(nearest, -1).transpose(1, 2))
    loss = loss.mul(len(stages)).repeat(len(indices))
    return out, indices.transpose(1, 2).contiguous(), latents, loss, loss.clone()


def _dac_with_gradients(x: Tensor, codes: list[Tensor], maps: list[list[Tensor]]) -> tuple[Tensor, ...]:
    """The same, differentiable.

    Stage i's latents ``W_i (h - sum_j (V_j s_j + v_j)) + w_i``, with the codes ``s_j`` of those before it,
    are ``W_i h + w_i - sum_j (W_i V_j s_j + W_i v_j)``: one product with ``h`` and one of the codes for all
    stages, instead of two a stage; the others are as narrow as the codes.
    """
    width = codes[0].shape[1]
    into, offsets, back, biases = (list(each) for each in zip(*maps, strict=True))
    enter, leave, added = torch.cat(into), torch.cat(back, 1), torch.stack(biases)  # (QD, C), (C, QD), (Q, C)
    left = (enter @ (added.cumsum(0) - added).T).unflatten(0, (-1, width)).diagonal(dim1=0, dim2=2)  # (D, Q)
    bias = torch.stack(offsets) - left.T
    books = F.normalize(torch.stack(codes), dim=-1)
    mixed = enter @ leave
    parts = F.linear(x.transpose(1, 2), enter, bias.flatten()).split(width, -1)
    latents: list[Tensor] = []
    quantized: list[Tensor] = []
    passed: list[Tensor] = []
    indices: list[Tensor] = []
    for q, (latent, code, book) in enumerate(zip(parts, codes, books, strict=True)):
        if q > 0:
            at = q * width
            latent = latent - F.linear(torch.cat(passed, -1), mixed[at : at + width, :at])
        indices.append(nearest_code(F.normalize(latent, dim=-1), book))
        latents.append(latent)
        quantized.append(F.embedding(indices[-1], code))
        passed.append(latent + (quantized[-1] - latent).detach())
    z, z_q = torch.cat(latents, -1), torch.cat(quantized, -1)
    out = leave @ torch.cat(passed, -1).transpose(1, 2) + added.sum(0).unsqueeze(1)
    losses = F.mse_loss(z, z_q.detach()), F.mse_loss(z_q, z.detach())
    commitment, codebook = ((len(codes) * loss).repeat(len(x)) for loss in losses)
    return out, torch.stack(indices, 1), z.transpose(1, 2).contiguous(), commitment, codebook


def _emu3(original: Fast, self: Any, hidden_state: Tensor) -> Tensor:
    """``(B, T, D, H, W)`` -> int64 ``(B, T, H, W)``."""
    codes = self.embedding.weight
    if little_to_search(hidden_state, codes):
        return original(self, hidden_state)
    x = hidden_state.movedim(2, -1)
    return nearest_code(x.reshape(-1, x.shape[-1]), codes).view(x.shape[:-1])


def _chameleon(original: Fast, self: Any, hidden_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Chameleon, Janus: ``(B, D, H, W)`` -> the same, loss, int64 ``(B * H * W,)``."""
    codes = self.embedding.weight
    if little(hidden_state, codes):
        return original(self, hidden_state)
    return straight_through(hidden_state, codes, commitment=1, codebook=self.beta)


def _glm_image(original: Fast, self: Any, hidden_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same between unit vectors; without gradients those of codes are made only where they are chosen."""
    codes = self.embedding.weight
    if little(hidden_state, codes):
        return original(self, hidden_state)
    if torch.is_grad_enabled() or transformed() or hidden_state.dtype != codes.dtype:
        z = F.normalize(hidden_state, dim=1)
        return straight_through(z, F.normalize(codes), commitment=1, codebook=self.beta)
    z = F.normalize(hidden_state.movedim(1, -1).contiguous(), dim=-1)
    indices = nearest_unit_code(z.flatten(0, -2), codes)
    quantized = F.normalize(F.embedding(indices, codes)).view(z.shape)
    loss = F.mse_loss(quantized, z) * (1 + self.beta)
    return (z + (quantized - z)).movedim(-1, 1).contiguous(), loss, indices


def _size(name: str) -> Callable[[Any], tuple[int, int]]:
    return lambda module: tuple(operator.attrgetter(name)(module).shape)


def _offloaded(module: Any) -> str:
    return "its codebook is offloaded" if hasattr(module.codebook, "_hf_hook") else ""


# of vectors; all stages of a residual quantiser at once; of grids
EUCLIDEAN = Swap({"quantize": _quantize}, _size("embed"), needs=("embed",), via=("encode",))
MIMI = EUCLIDEAN._replace(size=_size("embed_sum"))  # its embed is a cache that isn't to be filled here
DAC = Swap(
    {"decode_latents": _decode_latents},
    _size("codebook.weight"),
    needs=("codebook",),
    via=("forward",),
    refusal=_offloaded,
)
ENCODEC_STAGES = Swap(
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
DAC_STAGES = Swap(
    {"forward": _dac}, _size("quantizers.0.codebook.weight"), needs=("quantizers",), reported=False
)
EMU3 = Swap({"forward": _emu3}, _size("embedding.weight"), needs=("embedding",))
CHAMELEON = Swap({"forward": _chameleon}, _size("embedding.weight"), needs=("embedding", "beta"))
GLM_IMAGE = CHAMELEON._replace(methods={"forward": _glm_image})

SWAPS = {
    f"transformers.models.{model}.modeling_{model}.{name}": swap
    for model, name, swap in [
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
